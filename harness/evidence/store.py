"""Evidence on disk: written once after a run, then only read.

`EvidenceWriter` puts rows into a new DuckDB file in bulk; `Evidence` opens a finished one read-only and answers
queries. Everything to the right of this module (invariants, verdict, report) is a pure function of what it answers.

A file becomes `evidence.duckdb` only by the rename at the end of a successful write, so one that bears the name is
whole.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb
import numpy as np

from harness.errors import EnvironmentFailedError, EvidenceDamagedError
from harness.evidence.schema import FORMAT, columns_of, ddl, table_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from harness.records import Row

FILE_NAME = "evidence.duckdb"
_BATCH_ROWS = 50_000
_MEMORY_LIMIT = "768MB"

R = TypeVar("R")


class EvidenceWriter:
    """Collects rows into a database that is not evidence yet; `finish` makes it so."""

    def __init__(self, path: Path | None) -> None:
        """Open a fresh database beside `path`, or one in memory when `path` is None.

        Raises EnvironmentFailedError when there is no room for one.
        """
        self._path = path
        self._unfinished = None if path is None else path.with_suffix(".unfinished")
        if self._unfinished is not None:
            self._unfinished.unlink(missing_ok=True)
        with _keeping(path):
            self._connection = duckdb.connect(":memory:" if self._unfinished is None else str(self._unfinished))
            self._connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'; SET preserve_insertion_order = false")
            self._connection.execute(ddl())

    def write(self, rows: Iterable[Row]) -> int:
        """Append rows, of any mix of tables, and return how many there were.

        Raises EnvironmentFailedError when they cannot be kept, as on a full disk.
        """
        waiting: dict[type[Row], list[Row]] = {}
        count = 0
        for row in rows:
            of_its_kind = waiting.setdefault(type(row), [])
            of_its_kind.append(row)
            count += 1
            if len(of_its_kind) >= _BATCH_ROWS:
                self._insert(type(row), of_its_kind)
                of_its_kind.clear()
        for record, of_its_kind in waiting.items():
            self._insert(record, of_its_kind)
        return count

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a statement that derives evidence from evidence (how many operations a fault touched)."""
        return self._connection.execute(sql, list(parameters)).fetchall()

    def finish(self) -> Evidence:
        """Close the writing and return the evidence, opened for reading."""
        if self._path is None or self._unfinished is None:
            return Evidence(self._connection)
        self._keep("CHECKPOINT")
        self._connection.close()
        self._unfinished.rename(self._path)
        return Evidence.open(self._path)

    def _keep(self, sql: str) -> None:
        with _keeping(self._path):
            self._connection.execute(sql)

    def _insert(self, record: type[Row], rows: list[Row]) -> None:
        if not rows:
            return
        columns = columns_of(record)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for field in fields(record):
            array = np.empty(len(rows), dtype=object)
            array[:] = [_plain(getattr(row, field.name)) for row in rows]
            arrays[field.name] = array
        selected = ", ".join(f"{column.name}::{column.sql_type}" for column in columns)
        self._connection.register("arriving", arrays)
        self._keep(f"INSERT INTO {table_of(record)} SELECT {selected} FROM arriving")  # noqa: S608 - names come from our own dataclasses
        self._connection.unregister("arriving")


class Evidence:
    """Everything known after a run. Read-only; close it, or use it as a context manager."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Wrap an open connection; use `Evidence.open` for a file."""
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a finished file. Raises EvidenceDamagedError with one sentence when it cannot be judged."""
        if not path.is_file():
            raise EvidenceDamagedError(
                f"{path} does not exist: the run ended before its evidence was written, so nothing can be judged"
            )
        try:
            connection = duckdb.connect(str(path), read_only=True)
            connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
            numbers = connection.execute("SELECT number FROM format").fetchall()
        except duckdb.Error as error:
            raise _damaged(str(path), error) from error
        if numbers != [(FORMAT,)]:
            connection.close()
            raise EvidenceDamagedError(
                f"{path} has evidence format {numbers}, this version reads {FORMAT}: use the version that wrote it"
            )
        return cls(connection)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query over the tables of `harness.evidence.schema`."""
        try:
            return self._connection.execute(sql, list(parameters)).fetchall()
        except (duckdb.ProgrammingError, duckdb.DataError):
            raise  # a mistake in the query, not in the file
        except duckdb.Error as error:
            # A file may be whole where it is opened and torn where it is read.
            raise _damaged("the evidence", error) from error

    def count(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Return the single number a query yields, 0 for none."""
        rows = self.query(sql, parameters)
        return int(rows[0][0]) if rows and rows[0][0] is not None else 0

    def select(self, record: type[R], where: str = "true", parameters: Sequence[object] = ()) -> list[R]:
        """Return the rows of one table as records."""
        table_columns = columns_of(record)  # type: ignore[arg-type]  # R is always a Row; Row is not usable as a bound
        table = table_of(record)  # type: ignore[arg-type]  # as above
        selected = ", ".join(
            f"replace({column.name}::VARCHAR, '-', '')" if column.sql_type == "UUID" else column.name
            for column in table_columns
        )
        rows = self.query(f"SELECT {selected} FROM {table} WHERE {where}", parameters)  # noqa: S608 - names come from our own dataclasses
        names = [column.name for column in table_columns]
        return [record(**dict(zip(names, row, strict=True))) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


@contextmanager
def _keeping(path: Path | None) -> Iterator[None]:
    """Tell a place where nothing can be kept from an error of ours in what is kept."""
    try:
        yield
    except (duckdb.ProgrammingError, duckdb.DataError):
        raise
    except duckdb.Error as error:
        raise EnvironmentFailedError(
            f"the evidence cannot be written to {path} ({str(error).splitlines()[0]}): "
            "make room, or choose another place with --runs-dir"
        ) from error


def _damaged(what: str, error: duckdb.Error) -> EvidenceDamagedError:
    return EvidenceDamagedError(
        f"{what} is damaged and cannot be judged ({str(error).splitlines()[0]}): "
        "restore the file or carry out the run again"
    )


def _plain(value: object) -> object:
    # DuckDB reads numpy object arrays: text must be UTF-8 without surrogates, or the whole batch fails (FACTS 6).
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    return value
