"""A database on a PostgreSQL server: one connection that writes, a few that read, each made again when it is lost.

Promises: a group is one `executemany` outside of any block, which PostgreSQL makes a transaction of its own and
commits before it answers: one round trip, with `synchronous_commit`. Rows are put in the order of their keys before,
so that several processes that write the same rows wait for each other and never in a circle; should there be one all
the same, the victim is told apart (`DatabaseConflictError`). Only an answer counts: if the connection breaks before it
came, nobody can tell whether the group is stored (`DatabaseUnknownError`), nor whether the server is still working on
it, so that it may come into effect after a later one; statements must bear that. A lost connection is made again with
growing waits for as long as it takes; until then writes and reads fail at once.

Does not: use a server that can only be read; wait for a lock longer than `STATEMENT_WITHIN_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from operator import itemgetter
from typing import Self

import asyncpg

from system.database import postgres_lines
from system.database.errors import (
    DatabaseConflictError,
    DatabaseError,
    DatabaseOpenError,
    DatabasePartError,
    DatabaseRowError,
    DatabaseStatementError,
    DatabaseUnknownError,
)
from system.database.grouping import ANSWER_WITHIN_S, Batch
from system.database.postgres_lines import FAILURES, UNSENDABLE, Backoff, Connection, Line, said
from system.database.postgres_reads import Readers
from system.database.statements import Migration, Row, Statement, Value
from system.settings import PostgresLocation

log = logging.getLogger(__name__)

READERS = 4
OPEN_WITHIN_S = 30.0
"""How long a starting process waits for the server; as for the broker."""
MIGRATION_LOCK_WITHIN_S = 60.0
STATEMENT_WITHIN_S = 4.0
"""Kept by the server, and below what we wait for it: what it gave up itself is certainly not carried out."""

# Classes of SQLSTATE, and what they mean for the rows. 42 and 0A are a table that is not there, or rights that were
# taken away: no row's fault.
_MEANINGS: tuple[tuple[frozenset[str], type[DatabaseError], str], ...] = (
    (frozenset({"21", "22", "23", "44", "P0"}), DatabaseRowError, "refuses a row"),
    (frozenset({"0A", "42"}), DatabaseStatementError, "cannot do what it is asked"),
    (frozenset({"40"}), DatabaseConflictError, "undid a transaction"),
)
_NOBODY_KNOWS = frozenset({"08006", "08007", "40003"})
_FOR_GOOD = frozenset({"28", "3D", "42"})
"""Of those that refuse a connection: password, database, rights."""
_READ_ONLY = "25006"
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InternalClientError, OSError)

# Any number that only we use; the table it guards is shared by all services of one database.
_MIGRATION_LOCK = 7_309_841_120
_SCHEMA_VERSIONS = "CREATE TABLE IF NOT EXISTS schema_versions (service TEXT PRIMARY KEY, version INTEGER NOT NULL)"
_SCHEMA_VERSION = "SELECT version FROM schema_versions WHERE service = $1"
_SET_SCHEMA_VERSION = (
    "INSERT INTO schema_versions VALUES ($1, $2) ON CONFLICT (service) DO UPDATE SET version = excluded.version"
)


class PostgresBackend:
    """The server, from `opened` to `close`."""

    system = "postgresql"
    mixes_statements = False
    probes_always = True

    def __init__(self, location: PostgresLocation, *, name: str) -> None:
        self.location = str(location)
        self.namespace = self.location.rpartition("/")[2]
        self.why_down = f"the database {location} was not reached yet"
        self._can_write = False
        self._url = location.url
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._writer = Line(self._connect, self._note_away)
        self._reading = [Line(self._connect, self._note_away) for _ in range(READERS)]
        self._readers = Readers(self._reading, location=self.location, answer_within_s=ANSWER_WITHIN_S)
        self._keepers: list[asyncio.Task[None]] = []

    @classmethod
    async def opened(cls, location: PostgresLocation, *, migrations: Sequence[Migration], name: str) -> Self:
        """Connected, and the schema up to date; waits for a server that is not there yet."""
        self = cls(location, name=name)
        try:
            async with asyncio.timeout(OPEN_WITHIN_S) as deadline:
                connection = await self._connected_at_last()
                deadline.reschedule(None)
                try:
                    await self._migrate(connection, migrations)
                finally:
                    connection.terminate()
                deadline.reschedule(self._loop.time() + OPEN_WITHIN_S)
                await self._start()
        except TimeoutError:
            await self.close()
            raise DatabaseOpenError(f"{self.why_down}; gave up after {OPEN_WITHIN_S:g} s") from None
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def is_up(self) -> bool:
        """As `Backend` has it."""
        return self._can_write and self._readers.is_up

    @property
    def can_try(self) -> bool:
        """As `Backend` has it."""
        return self._writer.is_open

    async def commit(self, batches: Sequence[Batch]) -> None:
        """As `Backend` has it."""
        ((statement, rows),) = batches  # see `mixes_statements`
        if not self._writer.is_open:
            raise DatabaseError(self.why_down)
        try:
            if statement.key is not None:
                rows = sorted(rows, key=itemgetter(statement.key - 1))
            await self._writer.connection.executemany(statement.sql, rows)
        except UNSENDABLE as error:
            raise DatabaseRowError(f"the database {self.location} refuses a row: {said(error)}") from None
        except FAILURES as error:
            failure = self._failure(error)
            if not isinstance(failure, DatabasePartError | DatabaseConflictError):
                self._note_down(failure)
            raise failure from None
        self._note_up()

    async def probe(self) -> None:
        """As `Backend` has it; one that is down has to take a transaction number, which it must write down."""
        if not self._writer.is_open:
            return
        try:
            await self._writer.connection.fetchval("SELECT 1" if self._can_write else "SELECT txid_current()")
        except FAILURES as error:
            self._note_down(self._failure(error))
        else:
            self._note_up()

    async def read(self, statement: Statement, parameters: Row) -> list[tuple[Value, ...]]:
        """As `Backend` has it."""
        return await self._readers.read(statement, parameters)

    def look(self) -> None:
        """As `Backend` has it."""
        self._readers.look()

    def give_up(self) -> None:
        """Cut the connection off whose answer does not come."""
        self._writer.cut()

    async def close(self) -> None:
        """Let go of all connections."""
        self._can_write = False
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        self._readers.fail_all("was closed")
        await asyncio.gather(*(line.close() for line in (self._writer, *self._reading)))

    async def _connect(self) -> Connection:
        return await asyncpg.connect(
            self._url,
            timeout=postgres_lines.CONNECT_WITHIN_S,
            max_cached_statement_lifetime=0,
            # What a read-only server says would be old, and what it is told it could not keep.
            target_session_attrs="read-write",
            server_settings={
                "application_name": self._name,
                "synchronous_commit": "on",
                "default_transaction_isolation": "read committed",
                "statement_timeout": f"{STATEMENT_WITHIN_S:g}s",
            },
        )

    async def _connected_at_last(self) -> Connection:
        """A connection, however long it takes; `DatabaseOpenError` if waiting is in vain."""
        backoff = Backoff()
        while True:
            try:
                return await self._connect()
            except (asyncpg.ClientConfigurationError, ValueError) as error:
                raise self._unusable(error) from None
            except FAILURES as error:
                if getattr(error, "sqlstate", "")[:2] in _FOR_GOOD:
                    raise self._unusable(error) from None
                self._note_away(error)
            await backoff.wait()

    def _unusable(self, error: Exception) -> DatabaseOpenError:
        return DatabaseOpenError(
            f"the database {self.location} cannot be used: {said(error)}; set {self._name.upper()}_DB to another one"
        )

    async def _migrate(self, connection: Connection, migrations: Sequence[Migration]) -> None:
        """Bring the schema up to date, step by step; whoever comes second waits, and finds it done."""
        known = len(migrations)
        try:
            await connection.execute(f"SET statement_timeout = 0; SET lock_timeout = '{MIGRATION_LOCK_WITHIN_S:g}s'")
            version = 0
            while version < known:
                async with connection.transaction():
                    await connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
                    await connection.execute(_SCHEMA_VERSIONS)
                    version = await connection.fetchval(_SCHEMA_VERSION, self._name) or 0
                    if version < known:
                        # asyncpg stumbles over a script that does nothing.
                        await connection.execute(f"{migrations[version].postgres}\n;SELECT 1")
                        version += 1
                        await connection.execute(_SET_SCHEMA_VERSION, self._name, version)
        except FAILURES as error:
            raise self._unusable(error) from None
        if version > known:
            raise DatabaseOpenError(
                f"the database {self.location} has schema {version} of {self._name}, and this version knows only "
                f"{known}: run the newer version, or set {self._name.upper()}_DB to another database"
            )

    async def _start(self) -> None:
        """All connections are open when this returns."""
        opened = [self._loop.create_future() for _ in range(1 + READERS)]
        keeping = [self._keep_writer(opened[0])]
        keeping += [self._readers.serve(line, first) for line, first in zip(self._reading, opened[1:], strict=True)]
        for coroutine in keeping:
            keeper = self._loop.create_task(coroutine, name=f"{self._name}-database-connection")
            keeper.add_done_callback(self._on_keeper_done)
            self._keepers.append(keeper)
        await asyncio.gather(*opened)

    async def _keep_writer(self, first_open: asyncio.Future[None]) -> None:
        while True:
            lost = await self._writer.open()
            self._note_up()
            if not first_open.done():
                first_open.set_result(None)
            await lost
            self._note_down(DatabaseError(f"the database {self.location} is away: the connection was lost"))

    def _failure(self, error: Exception) -> DatabaseError:
        """What an exception of asyncpg during a write means for the rows."""
        where, what = f"the database {self.location}", said(error)
        state: str = getattr(error, "sqlstate", None) or ""
        is_fatal = getattr(error, "severity_en", None) in {"FATAL", "PANIC"}
        if isinstance(error, asyncpg.InterfaceError):
            if self._writer.is_open:  # it was found before anything was sent
                return DatabaseRowError(f"{where} refuses a row: {what}")
            return DatabaseUnknownError(f"{where} was lost before it answered: {what}")
        if not state or is_fatal or isinstance(error, _LOST) or state in _NOBODY_KNOWS:
            self._writer.cut()
            return DatabaseUnknownError(f"{where} was lost before it answered: {what}")
        for states, kind, says in _MEANINGS:
            if state[:2] in states:
                return kind(f"{where} {says}: {what}")
        if state == _READ_ONLY:
            self._writer.cut()
        return DatabaseError(f"{where} cannot be written to: {what}")

    def _note_away(self, error: Exception) -> None:
        self._note_down(DatabaseError(f"the database {self.location} is away: {said(error)}"))

    def _note_down(self, failure: DatabaseError) -> None:
        if self._can_write or not self._keepers:
            log.warning("%s", failure)
        self._can_write = False
        self.why_down = str(failure)

    def _note_up(self) -> None:
        if not self._can_write:
            self._can_write = True
            log.info("the database %s can be written to", self.location)

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            log.critical("a connection to the database %s is not kept any more", self.location, exc_info=error)
            self._can_write = False
            self.why_down = f"a connection to the database {self.location} is not kept any more: {error!r}"
