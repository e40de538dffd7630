"""Group commit over a backend that does as it is told: bounds, fairness, silence, conflicts, a writer that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from system.database.errors import DatabaseConflictError, DatabaseError, DatabaseRowError, DatabaseUnknownError
from system.database.grouping import CONFLICT_TRIES_MAX, Batch, GroupedDatabase
from system.database.statements import Row, Statement, Value
from system.metrics import Metrics
from system.tests.parts import wait_until
from system.tests.spans import Spans

PUT = Statement("PUT $1", key=1)
DROP = Statement("DROP $1", key=1)
KEYLESS = Statement("SWEEP $1")


class Scripted:
    """A backend in memory. committed: the groups it took, each `statement key key ...`, several joined by `;`."""

    system = "scripted"
    namespace = "memory"
    location = "in memory"

    def __init__(self, *, mixes_statements: bool = False) -> None:
        self.mixes_statements = mixes_statements
        self.probes_always = False
        self.is_up = True
        self.can_try = True
        self.why_down = "it is down"
        self.committed: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.failures: list[Exception] = []
        self.probes = 0
        self.was_given_up = False

    async def commit(self, batches: Sequence[Batch]) -> None:
        """Take it, or fail as told."""
        await self.answers.wait()
        if self.failures:
            raise self.failures.pop(0)
        told = [" ".join((statement.sql.split()[0], *(str(row[0]) for row in rows))) for statement, rows in batches]
        if any("poison" in each for each in told):
            raise DatabaseRowError("poison")
        self.committed.append("; ".join(told))

    async def probe(self) -> None:
        """It is up now."""
        self.probes += 1
        self.is_up = True

    async def read(self, statement: Statement, parameters: Row) -> list[tuple[Value, ...]]:
        """Nobody does."""
        raise NotImplementedError

    def look(self) -> None:
        """Nothing to see."""

    def give_up(self) -> None:
        """Answer at once that nobody knows."""
        self.was_given_up = True
        self.failures.append(DatabaseUnknownError("given up"))
        self.answers.set()

    async def close(self) -> None:
        """Gone."""
        self.can_try = False


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can wait for."""
    monkeypatch.setattr("system.database.grouping.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("system.database.grouping.ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr("system.database.grouping.PROBE_EVERY_S", 0.05)
    monkeypatch.setattr("system.database.grouping.CLOSE_WITHIN_S", 0.2)


@pytest_asyncio.fixture
async def backend() -> Scripted:
    """One that holds one statement per transaction, as PostgreSQL."""
    return Scripted()


@pytest_asyncio.fixture
async def database(backend: Scripted, metrics: Metrics) -> AsyncIterator[GroupedDatabase]:
    """Group commit over it."""
    database = GroupedDatabase(backend, name="test", tracer=Spans().tracer, metrics=metrics)
    yield database
    backend.answers.set()
    await database.close()


def put(database: GroupedDatabase, *keys: str, statement: Statement = PUT) -> asyncio.Future[None]:
    """A write of these keys."""
    return database.write_soon(statement, [(key,) for key in keys])


async def became(*writes: asyncio.Future[None]) -> list[str]:
    """What became of writes: `stored`, or the name of the error."""
    results = await asyncio.gather(*writes, return_exceptions=True)
    return ["stored" if result is None else type(result).__name__ for result in results]


async def test_a_write_may_overtake_only_those_about_other_keys(database: GroupedDatabase, backend: Scripted) -> None:
    """One statement at a time: the puts go together, but the one that came after the drop of its key."""
    await asyncio.gather(
        put(database, "a"),
        put(database, "b", statement=DROP),
        put(database, "c"),
        put(database, "b"),
        put(database, "d"),
    )

    assert backend.committed == ["PUT a c d", "DROP b", "PUT b"]


async def test_who_was_overtaken_is_in_the_next_group(database: GroupedDatabase, backend: Scripted) -> None:
    """However many of the other statement keep coming, nobody waits for more than one commit of theirs."""
    writes = [put(database, "x"), put(database, "y", statement=DROP)]
    for number in range(5):
        writes += [put(database, f"{number}") for _ in range(200)]
    await asyncio.gather(*writes)

    assert [group.split()[0] for group in backend.committed][:2] == ["PUT", "DROP"]


async def test_nothing_overtakes_a_write_without_a_key(database: GroupedDatabase, backend: Scripted) -> None:
    """It stands where it was asked for."""
    await asyncio.gather(
        put(database, "a"),
        put(database, "b", statement=KEYLESS),
        put(database, "c"),
        put(database, "d"),
        put(database, "e", statement=KEYLESS),
        put(database, "f", statement=KEYLESS),
    )

    assert backend.committed == ["PUT a", "SWEEP b", "PUT c d", "SWEEP e f"]


async def test_a_backend_that_mixes_statements_gets_all_in_their_order(metrics: Metrics) -> None:
    """One transaction, the statements as they came."""
    backend = Scripted(mixes_statements=True)
    database = GroupedDatabase(backend, name="test", tracer=Spans().tracer, metrics=metrics)
    await asyncio.gather(put(database, "a"), put(database, "b"), put(database, "a", statement=DROP), put(database, "a"))
    await database.close()

    assert backend.committed == ["PUT a b; DROP a; PUT a"]


async def test_a_group_has_a_bound_and_a_write_larger_than_it_goes_alone(
    database: GroupedDatabase, backend: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop and the server get it in portions; the rows of one write stay together."""
    monkeypatch.setattr("system.database.grouping.GROUP_ROWS_MAX", 3)
    await asyncio.gather(put(database, *"ab"), put(database, *"cd"), put(database, *"efghi"), put(database, "j"))

    assert backend.committed == ["PUT a b", "PUT c d", "PUT e f g h i", "PUT j"]


async def test_poison_is_found_by_halving(database: GroupedDatabase, backend: Scripted) -> None:
    """The good go in their order, in few commits; the bad ones' writers are told."""
    keys = [f"{number}" if number != 37 else "poison" for number in range(100)]

    results = await became(*(put(database, key) for key in keys))

    assert results == ["DatabaseRowError" if key == "poison" else "stored" for key in keys]
    assert " ".join(backend.committed).replace("PUT ", "").split() == [key for key in keys if key != "poison"]
    assert len(backend.committed) <= 8


async def test_a_failure_of_the_database_is_not_tried_for_every_part(
    database: GroupedDatabase, backend: Scripted
) -> None:
    """It went away while the poison was being looked for: all that are left are told at once."""
    backend.failures = [DatabaseRowError("poison"), DatabaseUnknownError("gone")]

    assert await became(*(put(database, key) for key in "abcd")) == ["DatabaseUnknownError"] * 2 + ["DatabaseError"] * 2
    assert await became(put(database, "e")) == ["stored"]


async def test_a_commit_that_is_not_answered_is_unknown_in_time(database: GroupedDatabase, backend: Scripted) -> None:
    """Those in it cannot tell, those behind it are certain; nobody new is taken until it answers."""
    backend.answers.clear()
    backend.give_up = lambda: None  # type: ignore[method-assign] # as a disk: nothing makes it answer
    first = put(database, "a")
    await wait_until(lambda: database._in_flight != ())
    second = put(database, "b")

    assert await became(first, second) == ["DatabaseUnknownError", "DatabaseError"]
    assert not database.is_up
    third = put(database, "c")
    assert third.done()
    with pytest.raises(DatabaseError, match="has not answered for"):
        await third

    backend.answers.set()
    await wait_until(lambda: database.is_up)
    assert await became(put(database, "d")) == ["stored"]
    assert backend.committed == ["PUT a", "PUT d"]


async def test_a_backend_that_can_be_given_up_is(database: GroupedDatabase, backend: Scripted) -> None:
    """It hangs; it is cut off; the next works."""
    backend.answers.clear()

    assert await became(put(database, "a")) == ["DatabaseUnknownError"]
    assert backend.was_given_up
    assert await became(put(database, "b")) == ["stored"]


async def test_a_write_that_is_never_begun_fails_in_time(
    database: GroupedDatabase, backend: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow commit before it is no reason to wait for ever."""
    monkeypatch.setattr("system.database.grouping.ANSWER_WITHIN_S", 60)
    monkeypatch.setattr("system.database.grouping.WAIT_WITHIN_S", 0.05)
    backend.answers.clear()
    first = put(database, "a")
    await wait_until(lambda: database._in_flight != ())

    with pytest.raises(DatabaseError, match=r"not begun within 0\.05 s"):
        await put(database, "b")
    backend.answers.set()

    assert await became(first, put(database, "c")) == ["stored"] * 2
    assert backend.committed == ["PUT a", "PUT c"], "what was said not to be stored is not"


async def test_the_victim_of_a_deadlock_is_tried_again_and_not_for_ever(
    database: GroupedDatabase, backend: Scripted
) -> None:
    """It did not come into effect, and most often the way is clear at once."""
    backend.failures = [DatabaseConflictError("deadlock")] * (CONFLICT_TRIES_MAX - 1)
    assert await became(put(database, "a")) == ["stored"]

    backend.failures = [DatabaseConflictError("deadlock")] * CONFLICT_TRIES_MAX
    assert await became(put(database, "b")) == ["DatabaseConflictError"]
    assert backend.committed == ["PUT a"]


async def test_one_that_is_down_is_probed_while_nobody_writes(database: GroupedDatabase, backend: Scripted) -> None:
    """So that it is known to be up again before anybody dares to write; one that is up is left alone."""
    backend.is_up = False
    await wait_until(lambda: database.is_up)

    assert backend.probes == 1


async def test_without_a_connection_all_who_wait_are_told_soon(database: GroupedDatabase, backend: Scripted) -> None:
    """Those waiting and those coming: certainly not stored."""
    backend.answers.clear()
    first = put(database, "a")
    await wait_until(lambda: database._in_flight != ())
    waiting = put(database, "b")
    backend.can_try = False

    assert await became(waiting, put(database, "c")) == ["DatabaseError"] * 2
    backend.answers.set()
    assert await became(first) == ["stored"]


async def test_closing_does_not_wait_for_one_that_does_not_answer(database: GroupedDatabase, backend: Scripted) -> None:
    """What is in flight is unknown, what waits is not stored."""
    backend.answers.clear()
    backend.give_up = lambda: None  # type: ignore[method-assign] # as a disk
    first = put(database, "a")
    await wait_until(lambda: database._in_flight != ())
    second = put(database, "b")
    await database.close()

    assert await became(first, second) == ["DatabaseUnknownError", "DatabaseError"]


async def test_a_writer_that_breaks_says_so_to_everybody(
    database: GroupedDatabase, backend: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours must not leave anybody waiting, nor a process that says it can work."""
    backend.failures = [ZeroDivisionError("a mistake")]

    assert await became(put(database, "a")) == ["DatabaseUnknownError"]
    assert await became(put(database, "b")) == ["DatabaseError"]
    assert not database.is_up
    assert "a mistake" in caplog.text


async def test_whoever_is_cancelled_during_the_commit_does_not_disturb_it(
    database: GroupedDatabase, backend: Scripted
) -> None:
    """The others are told that they are stored."""
    backend.answers.clear()
    impatient = asyncio.ensure_future(database.write(PUT, [("a",)]))
    other = put(database, "b")
    await wait_until(lambda: database._in_flight != ())
    impatient.cancel()
    backend.answers.set()

    assert await became(other) == ["stored"]
    assert impatient.cancelled()
    assert backend.committed == ["PUT b a"]
