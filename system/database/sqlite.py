"""A database in one SQLite file: one connection that writes, one that reads.

Promises: a commit is fsynced before it counts (WAL with `synchronous=FULL`, because the broker will not deliver again
what was acked after it); reads see what is committed, never wait for a writer, and never suspend. A full disk or a
locked file is an error for the rows at hand, and the next may work. Should a sync fail, nobody can tell what the file
would hold after a crash: that is said (`DatabaseUnknownError`). Several processes may use one file; they wait for each
other's commits.

The statements are carried out in the event loop's thread, and only the commit in another. In a thread of their own
they would have to take Python's lock back after each row: beside a loop that never rests a group of a hundred rows took
6.6 ms in the middle and 13.7 s at p99, against 3.0 and 151 ms so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from system.database.errors import (
    DatabaseError,
    DatabaseOpenError,
    DatabasePartError,
    DatabaseRowError,
    DatabaseStatementError,
    DatabaseUnknownError,
)
from system.database.grouping import Batch
from system.database.statements import Migration, Row, Statement, Value
from system.database.worker import Worker

log = logging.getLogger(__name__)

BUSY_WITHIN_S = 2.0
"""How long a commit waits for a lock that somebody else holds on the file."""
OPEN_BUSY_WITHIN_S = 30.0
"""How long a start waits while another process makes the schema."""
READ_BUSY_WITHIN_MS = 50
"""Readers meet a lock only while a crashed writer's log is being recovered."""
CLOSE_WITHIN_S = 2.0
_BUSY_POLL_S = 0.005

# Not SQLITE_ERROR: a table that is not there, or is another one, is no row's fault.
_THE_WRITES_FAULT = frozenset(
    {
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
    }
)
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# What sqlite3 raises for a value that no column takes: wrong type, wrong number, too large, a lone surrogate.
_UNBINDABLE = (OverflowError, ValueError, TypeError)


class SqliteBackend:
    """The file, from `opened` to `close`."""

    system = "sqlite"
    mixes_statements = True
    probes_always = False

    def __init__(self, path: Path, *, name: str) -> None:
        self.location = str(path)
        self.namespace = path.name
        self.is_up = True
        self.why_down = ""
        self._path = path
        self._worker = Worker(f"{name}-database")
        self._must_reopen = False

    @classmethod
    async def opened(cls, path: Path, *, migrations: Sequence[Migration], name: str) -> Self:
        """The file, created if need be, its schema up to date."""
        self = cls(path, name=name)
        try:
            await self._worker.call(self._open, migrations, name)
        except BaseException as error:
            self._worker.stop()
            if not isinstance(error, sqlite3.Error):
                raise
            raise DatabaseOpenError(
                f"the database {path} cannot be used: {error}; set {name.upper()}_DB to another file"
            ) from None
        return self

    @property
    def can_try(self) -> bool:
        """Always: only trying tells."""
        return True

    async def commit(self, batches: Sequence[Batch]) -> None:
        """As `Backend` has it."""
        try:
            await self._begin()
            await self._carry_out(batches)
        except DatabasePartError:
            raise
        except DatabaseError as error:
            self._note_down(error)
            raise
        self._note_up()

    async def probe(self) -> None:
        """Find out whether a commit would work, by one that changes nothing; it writes a page all the same."""
        try:
            await self._begin()
            (version,) = self._writes.execute("PRAGMA user_version").fetchone()
            self._writes.execute(f"PRAGMA user_version={version}")
            await self._carry_out(())
        except (DatabaseError, sqlite3.Error) as error:
            self._note_down(error)
            self._roll_back()
        else:
            self._note_up()

    async def read(self, statement: Statement, parameters: Row) -> list[tuple[Value, ...]]:
        """As `Backend` has it; without a suspension."""
        try:
            return self._cursor.execute(statement.sqlite, parameters).fetchall()
        except (sqlite3.Error, *_UNBINDABLE) as error:
            raise DatabaseError(f"the database {self._path} could not be read: {error}") from None

    def look(self) -> None:
        """Nothing here waits for anybody."""

    def give_up(self) -> None:
        """Nothing makes a disk answer."""

    async def close(self) -> None:
        """Let go of the file; the last one to do so empties the log into it."""
        self._reads.close()
        closed = self._worker.call(self._writes.close)
        self._worker.stop()
        await asyncio.wait((closed,), timeout=CLOSE_WITHIN_S)
        if not closed.done():
            log.warning("the database %s was left open: the disk does not answer", self._path)
        elif (error := closed.exception()) is not None:
            log.warning("the database %s could not be closed: %s", self._path, error)

    async def _begin(self) -> None:
        try:
            if self._must_reopen:
                await self._worker.call(self._reopen)
                self._must_reopen = False
            try:
                self._writes.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _LOCKED:
                    raise
                await self._worker.call(self._begin_patiently)
        except sqlite3.Error as error:
            self._must_reopen |= _primary_code(error) not in _LOCKED
            raise DatabaseError(f"the database {self._path} cannot be written to: {error}") from None

    def _begin_patiently(self) -> None:
        """Wait for whoever has the lock. Runs in the worker."""
        deadline_s = time.monotonic() + BUSY_WITHIN_S
        while True:
            try:
                self._writes.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _LOCKED or time.monotonic() > deadline_s:
                    raise
                time.sleep(_BUSY_POLL_S)
            else:
                return

    async def _carry_out(self, batches: Sequence[Batch]) -> None:
        try:
            for statement, rows in batches:
                self._writes.executemany(statement.sqlite, rows)
        except (sqlite3.Error, *_UNBINDABLE) as error:
            self._roll_back()
            raise self._failure(error) from None
        try:
            await self._worker.call(self._writes.execute, "COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if _primary_code(error) == sqlite3.SQLITE_IOERR and error.sqlite_errorcode != sqlite3.SQLITE_IOERR_WRITE:
                self._must_reopen = True
                raise DatabaseUnknownError(
                    f"the database {self._path} failed to make a commit durable: {error}"
                ) from None
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> DatabaseError:
        code = _primary_code(error)
        if code is None or code in _THE_WRITES_FAULT:
            return DatabaseRowError(f"the database {self._path} refuses a row: {error}")
        if code == sqlite3.SQLITE_ERROR:
            return DatabaseStatementError(f"the database {self._path} cannot do what it is asked: {error}")
        self._must_reopen |= code not in _LOCKED and code != sqlite3.SQLITE_FULL
        return DatabaseError(f"the database {self._path} cannot be written to: {error}")

    def _roll_back(self) -> None:
        try:
            # Some failures end the transaction by themselves.
            if self._writes.in_transaction:
                self._writes.execute("ROLLBACK")
        except sqlite3.Error:
            self._must_reopen = True

    def _note_down(self, error: Exception) -> None:
        self.why_down = str(error)
        if self.is_up:
            self.is_up = False
            log.error("%s", error)

    def _note_up(self) -> None:
        if not self.is_up:
            self.is_up = True
            log.info("the database %s can be written to again", self._path)

    def _open(self, migrations: Sequence[Migration], name: str) -> None:
        """Runs in the worker."""
        deadline_s = time.monotonic() + OPEN_BUSY_WITHIN_S
        while True:
            try:
                self._open_once(migrations, name)
            except sqlite3.OperationalError as error:
                # Others that start or end at this moment hold locks that SQLite itself does not wait for.
                if _primary_code(error) not in _LOCKED or time.monotonic() > deadline_s:
                    raise
                time.sleep(_BUSY_POLL_S)
            else:
                return

    def _open_once(self, migrations: Sequence[Migration], name: str) -> None:
        with contextlib.ExitStack() as closing:
            self._writes = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=OPEN_BUSY_WITHIN_S
            )
            closing.callback(self._writes.close)
            (mode,) = self._writes.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise sqlite3.NotSupportedError("its file system cannot do write-ahead logging")
            _migrate(self._writes, self._path, migrations, name)
            _make_writer(self._writes)
            self._reads = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            closing.callback(self._reads.close)
            self._reads.execute("PRAGMA query_only=1")
            self._reads.execute(f"PRAGMA busy_timeout={READ_BUSY_WITHIN_MS}")
            self._cursor = self._reads.cursor()
            closing.pop_all()

    def _reopen(self) -> None:
        """Runs in the worker."""
        self._writes.close()
        self._writes = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        _make_writer(self._writes)


def _make_writer(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous=FULL")
    # A lock is waited for in the worker: the event loop has no time for it.
    connection.execute("PRAGMA busy_timeout=0")


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration], name: str) -> None:
    """Bring the schema up to date, step by step; whoever comes second finds it done."""
    # Two services that are given one file would take each other's schema for their own.
    mark = zlib.crc32(name.encode()) & 0x7FFF_FFFF
    while (version := _schema_version(connection, path, mark, name)) < len(migrations):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _schema_version(connection, path, mark, name) == version:
                for sql in _statements(migrations[version].sqlite):
                    connection.execute(sql)
                connection.execute(f"PRAGMA user_version={version + 1}")
                connection.execute(f"PRAGMA application_id={mark}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
    if version > len(migrations):
        raise DatabaseOpenError(
            f"the database {path} has schema {version}, and this version knows only {len(migrations)}: "
            f"run the newer version, or set {name.upper()}_DB to another file"
        )


def _schema_version(connection: sqlite3.Connection, path: Path, mark: int, name: str) -> int:
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    if found not in (0, mark):
        raise DatabaseOpenError(
            f"the database {path} belongs to another service: set {name.upper()}_DB to a file of its own"
        )
    version: int
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit what is open before it begins."""
    sql = ""
    for piece in script.split(";"):
        sql += piece + ";"
        if sqlite3.complete_statement(sql):
            if sql.strip(" \n\t;"):
                yield sql
            sql = ""
    if sql.strip(" \n\t;"):
        yield sql


def _primary_code(error: Exception) -> int | None:
    """What kind of failure; None where it was found before SQLite was asked."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
