"""A database: rows are written in groups, each committed durably, and read back; SQLite or PostgreSQL.

Promises: `write` returns once its rows are committed and durable, all of one call in one transaction, together with
whatever else waited; writes about one key keep their order (see `Statement`). A row that the database refuses hurts
only its own writer. An outage is survived: writes fail quickly and bounded meanwhile, `is_up` says so, and what comes
after it works. Everything that waits is bounded in number and in time. A schema moves forward by numbered steps, safe
with several processes starting at once; a newer one than this version knows keeps the process from starting.

Does not: transactions over several calls; retry a write, because only its caller knows whether it may; keep a group
whose outcome is unknown from coming into effect after a later one. So statements must lead to the same rows however
often they are carried out, and whichever comes first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from system.database.errors import DatabaseError, DatabaseOpenError, DatabaseRowError, DatabaseUnknownError
from system.database.grouping import Backend, GroupedDatabase
from system.database.statements import Migration, Row, Statement, Value
from system.settings import SqliteLocation

if TYPE_CHECKING:
    import asyncio

    from system.metrics import Metrics
    from system.settings import DatabaseLocation
    from system.telemetry import LeanTracer, Parent

__all__ = [
    "Database",
    "DatabaseError",
    "DatabaseOpenError",
    "DatabaseRowError",
    "DatabaseUnknownError",
    "Migration",
    "Row",
    "Statement",
    "Value",
    "open_database",
]


class Database(Protocol):
    """An open database."""

    @property
    def is_up(self) -> bool:
        """Whether it can be written to, as far as is known now."""

    async def write(self, statement: Statement, rows: Sequence[Row], *, link: Parent | None = None) -> None:
        """Carry out the statement with each row; all are durable when this returns.

        `DatabaseError` says that none is stored, `DatabaseRowError` that trying again is in vain,
        `DatabaseUnknownError` that nobody can tell. Whoever is cancelled here cannot tell either. rows: left alone by
        the caller until then. link: a span that the commit's span shall link to.
        """

    def write_soon(
        self, statement: Statement, rows: Sequence[Row], *, link: Parent | None = None
    ) -> asyncio.Future[None]:
        """As `write`, for those who do not wait, or for something else first.

        The future has the outcome; a failure is counted here, so that nobody needs to look at it.
        """

    async def read(self, statement: Statement, parameters: Row = ()) -> list[tuple[Value, ...]]:
        """What is committed. On SQLite it comes without waiting: the coroutine never suspends."""


@asynccontextmanager
async def open_database(
    location: DatabaseLocation, *, migrations: Sequence[Migration], name: str, tracer: LeanTracer, metrics: Metrics
) -> AsyncIterator[Database]:
    """The database, its schema up to date; closed at the end, when what waits has been committed, bounded.

    name: of the service, as `orders`, for logs, errors and what the server is told. `DatabaseOpenError` if it cannot
    be used.
    """
    database = GroupedDatabase(await _opened(location, migrations, name), name=name, tracer=tracer, metrics=metrics)
    try:
        yield database
    finally:
        await database.close()


async def _opened(location: DatabaseLocation, migrations: Sequence[Migration], name: str) -> Backend:
    # Whoever uses one kind need not spend the time to import the other.
    if isinstance(location, SqliteLocation):
        from system.database.sqlite import SqliteBackend  # noqa: PLC0415 - see above

        return await SqliteBackend.opened(location.path, migrations=migrations, name=name)
    try:
        from system.database.postgres import PostgresBackend  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        raise DatabaseOpenError(
            f"the database {location} needs {error.name}, which is not installed: pip install 'stormproof[postgres]'"
        ) from None
    return await PostgresBackend.opened(location, migrations=migrations, name=name)
