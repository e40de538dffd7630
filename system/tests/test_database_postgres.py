"""What a server and a network can do to a database: connections lost, answers lost, locks, deadlocks, a late start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import asyncpg
import pytest
import pytest_asyncio

from system.database import (
    Database,
    DatabaseError,
    DatabaseOpenError,
    DatabaseUnknownError,
    Migration,
    Statement,
    Value,
    open_database,
)
from system.database.postgres import PostgresBackend
from system.metrics import Metrics
from system.settings import PostgresLocation
from system.tests.parts import Proxy, free_port, wait_until
from system.tests.postgres import PostgresServer
from system.tests.spans import Spans

NOTES = Migration(sqlite="", postgres="CREATE TABLE notes (id TEXT PRIMARY KEY, said TEXT NOT NULL);")
ADD = Statement("INSERT INTO notes VALUES ($1, $2)", key=1)
APPEND = Statement(
    "INSERT INTO notes VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET said = notes.said || excluded.said", key=1
)
APPEND_STRICTLY = Statement(APPEND.sql)
ALL = Statement("SELECT id FROM notes ORDER BY id")

Outsider = Any  # a connection of asyncpg, which has no types


@contextlib.asynccontextmanager
async def opened(
    url: str, migrations: Sequence[Migration] = (NOTES,), *, metrics: Metrics | None = None
) -> AsyncIterator[Database]:
    """The database at this URL."""
    async with open_database(
        PostgresLocation(url=url),
        migrations=migrations,
        name="test",
        tracer=Spans().tracer,
        metrics=metrics or Metrics(),
    ) as database:
        yield database


async def ids(database: Database) -> list[Value]:
    """All notes."""
    return [row[0] for row in await database.read(ALL)]


def backend_of(database: Database) -> PostgresBackend:
    """What is behind it."""
    backend: PostgresBackend = database._backend  # type: ignore[attr-defined]
    return backend


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can wait for."""
    monkeypatch.setattr("system.database.grouping.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("system.database.grouping.PROBE_EVERY_S", 0.1)


@pytest_asyncio.fixture
async def other(postgres_url: str) -> AsyncIterator[Outsider]:
    """Somebody else's connection to the same database."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close(timeout=1)


async def terminate_all(other: Outsider, name: str = "test") -> None:
    """The server closes every connection of the service."""
    await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name)


async def test_a_commit_is_durable_and_one_round_trip(postgres_url: str) -> None:
    """Asked of the connection itself: commits are synced, and each statement is a transaction of its own."""
    async with opened(postgres_url) as database:
        connection = backend_of(database)._writer.connection
        settings = [await connection.fetchval(f"SHOW {name}") for name in ("synchronous_commit", "application_name")]
        await database.write(ADD, [("a", "x")])
        is_in_transaction = connection.is_in_transaction()

    assert settings == ["on", "test"]
    assert not is_in_transaction


async def test_lost_connections_are_made_again(
    postgres_url: str, other: Outsider, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen without anybody writing; then it is up again by itself, said once each, and what was written is there."""
    caplog.set_level(logging.INFO)
    async with opened(postgres_url) as database:
        await database.write(ADD, [("a", "x")])
        caplog.clear()
        await terminate_all(other)
        await wait_until(lambda: "is away" in caplog.text)
        await wait_until(lambda: database.is_up)
        await database.write(ADD, [("b", "x")])

        assert await ids(database) == ["a", "b"]
    said = [record.getMessage().partition("test_")[2].partition(" ")[2] for record in caplog.records]
    assert said == ["is away: the connection was lost", "can be written to"]


async def test_while_the_server_is_away_everybody_is_told_at_once(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Writes and reads fail without waiting; a crash of the server loses nothing; it comes back by itself."""
    async with opened(postgres_url) as database:
        await database.write(ADD, [("a", "x")])
        postgres_server.stop()
        await wait_until(lambda: not database.is_up)
        began_s = time.monotonic()
        for _ in range(100):
            with pytest.raises(DatabaseError, match=r"1 row not written: .* is away: .+") as refused:
                await database.write(ADD, [("b", "x")])
            assert not isinstance(refused.value, DatabaseUnknownError)
        await wait_until(lambda: not any(line.is_open for line in backend_of(database)._reading))
        with pytest.raises(DatabaseError, match="not read"):
            await ids(database)
        assert time.monotonic() - began_s < 1

        postgres_server.start()
        await wait_until(lambda: database.is_up)
        await database.write(ADD, [("c", "x")])
        assert await ids(database) == ["a", "c"]


class AnswerEater:
    """A proxy before a server; once told to, it closes a connection instead of passing the next answer on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.is_eating = False
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if self.is_eating and target is writer:
                        break
                    target.write(data)
            far_writer.transport.abort()
            writer.transport.abort()

        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))


async def test_a_commit_whose_answer_is_lost_is_unknown(postgres_server: PostgresServer, postgres_url: str) -> None:
    """It is stored, but who asked cannot tell, nor could they if it were not."""
    async with AnswerEater(postgres_server.port) as proxy:
        url = postgres_url.replace(str(postgres_server.port), str(proxy.port))
        async with opened(url) as database:
            await database.write(ADD, [("a", "x")])  # what it asks about the statement is asked now
            proxy.is_eating = True
            with pytest.raises(DatabaseUnknownError, match="was lost before it answered"):
                await database.write(ADD, [("b", "x")])
            proxy.is_eating = False
            await wait_until(lambda: database.is_up)

            assert await ids(database) == ["a", "b"]


async def test_a_silent_network_is_noticed_with_and_without_writes(
    postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is refused, nothing answers: writers and readers are told within a bound, and all is well after it."""
    monkeypatch.setattr("system.database.grouping.ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr("system.database.postgres.ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr("system.database.postgres_lines.CONNECT_WITHIN_S", 0.2)
    async with Proxy(postgres_server.port) as proxy:
        url = postgres_url.replace(str(postgres_server.port), str(proxy.port))
        async with opened(url) as database:
            await database.write(ADD, [("a", "x")])
            for number in range(2):
                proxy.cut()
                if number:
                    reading = asyncio.ensure_future(ids(database))
                    with pytest.raises(DatabaseError):  # unknown, unless a probe was in its way
                        await database.write(ADD, [("b", "x")])
                    with pytest.raises(DatabaseError, match="could not be read"):
                        await reading
                await wait_until(lambda: not database.is_up, what="silence noticed")
                proxy.heal()
                await wait_until(lambda: database.is_up)
            await database.write(ADD, [("c", "x")])

            assert await ids(database) == ["a", "c"]


async def test_a_lock_that_is_held_too_long_fails_the_rows_for_certain(
    postgres_url: str, other: Outsider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gives the statement up, so it is not stored; later it can be."""
    monkeypatch.setattr("system.database.postgres.STATEMENT_WITHIN_S", 0.1)
    async with opened(postgres_url) as database:
        async with other.transaction():
            await other.execute("LOCK TABLE notes")
            with pytest.raises(DatabaseError, match="statement timeout") as refused:
                await database.write(ADD, [("a", "x")])
            assert not isinstance(refused.value, DatabaseUnknownError)
            assert not database.is_up
        await wait_until(lambda: database.is_up)
        await database.write(ADD, [("b", "x")])

        assert await ids(database) == ["b"]


async def test_processes_that_write_the_same_rows_never_wait_in_a_circle(postgres_url: str, other: Outsider) -> None:
    """Each in the opposite order, again and again: no deadlock, because rows are put in the order of their keys."""
    keys = [f"{number}" for number in range(50)]
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        for _ in range(20):
            await asyncio.gather(
                one.write(APPEND, [(key, "1") for key in keys]), two.write(APPEND, [(key, "2") for key in keys[::-1]])
            )
        said = await one.read(Statement("SELECT DISTINCT length(said) FROM notes"))
    deadlocks = await other.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")

    assert said == [(40,)]
    assert deadlocks == 0


async def test_the_victim_of_a_deadlock_is_written_again(postgres_url: str, other: Outsider) -> None:
    """Somebody else does not keep the order: the server undoes our transaction, and it is simply repeated."""
    name = postgres_url.rpartition("/")[2]
    await other.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '20ms'")
    async with opened(postgres_url) as database:
        await database.write(ADD, [("a", ""), ("b", "")])
        await other.execute("SET deadlock_timeout = '10s'")  # so that the victim is ours
        async with other.transaction():
            await other.execute("UPDATE notes SET said = 'other' WHERE id = 'b'")
            waiting = database.write_soon(APPEND_STRICTLY, [("a", "!"), ("b", "!")])
            await other.execute("SET LOCAL statement_timeout = '5s'")
            while not await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"):
                pass
            await other.execute("UPDATE notes SET said = 'other' WHERE id = 'a'")
        await waiting

        assert await database.read(Statement("SELECT said FROM notes")) == [("other!",)] * 2
    # The server counts when a session ends.
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    while not await other.fetchval(deadlocks):
        await other.execute("SELECT pg_stat_clear_snapshot()")


async def test_a_server_that_only_reads_is_not_written_to(postgres_url: str, other: Outsider) -> None:
    """After a change of roles the old server refuses: it is left, and asked again until one writes."""
    name = postgres_url.rpartition("/")[2]
    async with opened(postgres_url) as database:
        await database.write(ADD, [("a", "x")])
        await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await terminate_all(other)
        await wait_until(lambda: "read-write" in backend_of(database).why_down)
        with pytest.raises(DatabaseError):
            await database.write(ADD, [("b", "x")])

        await other.execute("SET default_transaction_read_only = off")
        await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await wait_until(lambda: database.is_up)
        await database.write(ADD, [("c", "x")])
        assert await ids(database) == ["a", "c"]


async def test_more_reads_than_connections_wait_for_their_turn(postgres_url: str, other: Outsider) -> None:
    """All are answered; one that is cancelled takes no connection with it."""
    async with opened(postgres_url) as database:
        slow = Statement("SELECT pg_sleep($1), 1")
        for cancelled in (False, True):
            reads = [asyncio.ensure_future(database.read(slow, (0.02,))) for _ in range(20)]
            await asyncio.sleep(0)
            if cancelled:
                for read in reads[:10]:
                    read.cancel()
            answers = await asyncio.gather(*reads, return_exceptions=True)
            assert len([answer for answer in answers if isinstance(answer, list)]) == (10 if cancelled else 20)
        assert await ids(database) == []


async def test_reads_by_key_share_round_trips(postgres_url: str, other: Outsider) -> None:
    """A hundred at once are a few transactions of the server, and the one that is cancelled disturbs nobody."""
    by_id = Statement("SELECT id, said FROM notes WHERE id = $1", key=1)
    transactions = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    async with opened(postgres_url) as database:
        await database.write(ADD, [(f"{number}", "x") for number in range(100)])
        reads = [asyncio.ensure_future(database.read(by_id, (f"{number}",))) for number in range(100)]
        await asyncio.sleep(0)
        reads[50].cancel()
        answers = await asyncio.gather(*reads, return_exceptions=True)
    while await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test'"):
        pass  # a session tells what it did when it ends

    assert [answer for answer in answers if isinstance(answer, list)] == [
        [(f"{number}", "x")] for number in range(100) if number != 50
    ]
    assert await other.fetchval(transactions) < 60


async def test_reads_by_what_is_not_their_key_are_answered_one_by_one(postgres_url: str) -> None:
    """A mistake in a statement costs time, and not the right answer."""
    wrong = Statement("SELECT said, id FROM notes WHERE id = $1", key=1)
    async with opened(postgres_url) as database:
        await database.write(ADD, [("a", "x"), ("b", "x")])
        answers = await asyncio.gather(*(database.read(wrong, (key,)) for key in ("a", "b", "a", "c")))

    assert answers == [[("x", "a")], [("x", "b")], [("x", "a")], []]


async def test_there_is_a_bound_to_reads_that_wait(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes after it is told at once; when the connections are lost all who wait are."""
    monkeypatch.setattr("system.database.postgres_reads.WAITING_MAX", 2)
    async with opened(postgres_url) as database:
        slow = Statement("SELECT pg_sleep($1), 1")
        reads = [asyncio.ensure_future(database.read(slow, (60,))) for _ in range(7)]
        await wait_until(reads[6].done)
        began_s = time.monotonic()
        for line in backend_of(database)._reading:
            line.cut()
        answers = await asyncio.gather(*reads, return_exceptions=True)
        assert time.monotonic() - began_s < 2

    assert [type(answer).__name__ for answer in answers] == ["DatabaseError"] * 7


async def test_a_start_waits_for_a_server_that_is_not_there_yet(
    postgres_server: PostgresServer, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Parts may start in any order."""
    postgres_server.stop()
    async with contextlib.AsyncExitStack() as stack:
        entering = asyncio.ensure_future(stack.enter_async_context(opened(postgres_url)))
        await wait_until(lambda: "is away" in caplog.text)
        assert not entering.done()
        postgres_server.start()
        database = await entering

        assert database.is_up


async def test_a_start_that_waits_can_be_called_off() -> None:
    """Whoever is told to stop meanwhile need not wait for the server."""
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        url = f"postgresql://user@127.0.0.1:{free_port()}/db"
        entering = asyncio.ensure_future(stack.enter_async_context(opened(url)))
        await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait((entering,), timeout=1)

    assert entering.cancelled()
    assert asyncio.all_tasks() == before


async def test_closing_does_not_wait_for_a_silent_network(
    postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way is unknown."""
    monkeypatch.setattr("system.database.grouping.CLOSE_WITHIN_S", 0.1)
    monkeypatch.setattr("system.database.postgres_lines.CLOSE_WITHIN_S", 0.1)
    async with Proxy(postgres_server.port) as proxy:
        async with opened(postgres_url.replace(str(postgres_server.port), str(proxy.port))) as database:
            await database.write(ADD, [("a", "x")])
            proxy.cut()
            waiting = database.write_soon(ADD, [("b", "x")])
            await wait_until(lambda: database._in_flight != ())  # type: ignore[attr-defined]
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 1
    with pytest.raises(DatabaseUnknownError):
        await waiting


async def test_a_start_waits_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is one sentence, without the password."""
    monkeypatch.setattr("system.database.postgres.OPEN_WITHIN_S", 0.2)
    port = free_port()
    with pytest.raises(
        DatabaseOpenError, match=rf"postgresql://127\.0\.0\.1:{port}/db is away: .*gave up after 0\.2 s"
    ):
        async with opened(f"postgresql://user:secret@127.0.0.1:{port}/db"):
            pass


async def test_a_database_that_does_not_exist_is_one_sentence_at_once(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Waiting would be in vain."""
    began_s = time.monotonic()
    for url, why in (
        (f"postgresql://postgres@127.0.0.1:{postgres_server.port}/nowhere", 'database "nowhere" does not exist'),
        (postgres_url.replace("postgres@", "nobody:secret@"), 'role "nobody" does not exist'),
    ):
        with pytest.raises(DatabaseOpenError, match=rf"cannot be used: {why}; set TEST_DB") as refused:
            async with opened(url):
                pass
        assert "secret" not in str(refused.value)
    assert time.monotonic() - began_s < 2


async def test_services_may_share_a_database(postgres_url: str) -> None:
    """Each has a schema of its own, with its own number."""
    bills = Migration(sqlite="", postgres="CREATE TABLE bills (id TEXT);")
    nothing = Migration(sqlite="", postgres="-- only SQLite needed this step")
    arguments = {"tracer": Spans().tracer, "metrics": Metrics()}
    location = PostgresLocation(url=postgres_url)
    async with contextlib.AsyncExitStack() as stack:
        starts = [
            stack.enter_async_context(open_database(location, migrations=migrations, name=name, **arguments))  # type: ignore[arg-type]
            for name, migrations in (("orders", (NOTES,)), ("payments", (bills, nothing)))
        ]
        database, _ = await asyncio.gather(*starts)

        versions = await database.read(Statement("SELECT service, version FROM schema_versions ORDER BY service"))
    assert versions == [("orders", 1), ("payments", 2)]
