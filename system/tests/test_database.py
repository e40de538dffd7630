"""What a database promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.trace import SpanKind

from system.database import (
    Database,
    DatabaseError,
    DatabaseOpenError,
    DatabaseRowError,
    DatabaseUnknownError,
    Migration,
    Statement,
    Value,
    open_database,
)
from system.metrics import Metrics
from system.settings import DatabaseLocation
from system.telemetry import ROOT, SpanTemplate
from system.tests.spans import Spans

SCHEMA = "CREATE TABLE notes (id TEXT PRIMARY KEY, said {text} NOT NULL, amount {whole}, share {real}, raw {raw});"
NOTES = Migration(
    sqlite=SCHEMA.format(text="TEXT", whole="INTEGER", real="REAL", raw="BLOB"),
    postgres=SCHEMA.format(text="TEXT", whole="BIGINT", real="DOUBLE PRECISION", raw="BYTEA"),
)
ADD = Statement("INSERT INTO notes (id, said) VALUES ($1, $2)", key=1)
APPEND = Statement(
    "INSERT INTO notes (id, said) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET said = notes.said || excluded.said",
    key=1,
)
WRAP = Statement("UPDATE notes SET said = '$9(' || said || ')' WHERE id = $1", key=1)
APPEND_STRICTLY = Statement(APPEND.sql)
SAID = Statement("SELECT said FROM notes WHERE id = $1")
BY_ID = Statement("SELECT id, said FROM notes WHERE id = $1", key=1)
COUNT = Statement("SELECT count(*) FROM notes")
NUMBERS = count()


@pytest.fixture
def migrations() -> Sequence[Migration]:
    """One small table."""
    return (NOTES,)


async def said(database: Database, note: str) -> Value:
    """What a note says; None if there is none."""
    rows = await database.read(SAID, (note,))
    return rows[0][0] if rows else None


async def outcomes(*writes: asyncio.Future[None]) -> list[str]:
    """What became of writes: `stored`, or the name of the error."""
    results = await asyncio.gather(*writes, return_exceptions=True)
    return ["stored" if result is None else type(result).__name__ for result in results]


async def test_every_kind_of_value_comes_back_as_it_was_written(database: Database) -> None:
    """Text of any script, the largest and smallest whole numbers, fractions, bytes, and nothing."""
    add = Statement("INSERT INTO notes (raw, share, amount, said, id) VALUES ($5, $4, $3, $2, $1)", key=1)
    read = Statement("SELECT id, said, amount, share, raw FROM notes ORDER BY id")
    rows: list[tuple[Value, ...]] = [
        ("1", "Grüße, 東京 🙂", 2**63 - 1, 0.1, b"\0\xff"),
        ("2", "", -(2**63), -1e300, b""),
        ("3", "'$1' -- ?", None, None, None),
    ]

    await database.write(add, rows)

    assert await database.read(read) == rows


async def test_a_write_is_readable_when_it_returns(database: Database) -> None:
    """Read your writes."""
    for number in range(5):
        await database.write(ADD, [(str(number), "x")])
        assert await database.read(COUNT) == [(number + 1,)]


async def test_nothing_to_write_is_written_at_once(database: Database, metrics: Metrics) -> None:
    """No rows, no commit."""
    await database.write(ADD, [])

    assert metrics.counter("db_rows", "").value == 0


async def test_writes_that_wait_together_share_a_commit(database: Database, metrics: Metrics) -> None:
    """A thousand writes, few commits, every row there, and each write's wait measured."""
    await asyncio.gather(*(database.write(ADD, [(str(number), "x")]) for number in range(1000)))

    commits, waits = metrics.histogram("db_commit_seconds", ""), metrics.histogram("db_wait_seconds", "")
    assert await database.read(COUNT) == [(1000,)]
    assert metrics.counter("db_rows", "").value == 1000
    assert sum(waits.counts) == 1000
    assert sum(commits.counts) <= 10


async def test_the_rows_of_one_write_are_stored_together_or_not_at_all(database: Database) -> None:
    """The second row is refused, so the first is not stored either."""
    with pytest.raises(DatabaseRowError, match="refuses a row"):
        await database.write(ADD, [("a", "x"), ("b", None), ("c", "x")])

    assert await database.read(COUNT) == [(0,)]


POISON: dict[str, tuple[Statement, Sequence[Value]]] = {
    "violates a constraint": (ADD, ("taken", "x")),
    "a null where none may be": (ADD, ("n", None)),
    "too few values": (ADD, ("n",)),
    "too many values": (ADD, ("n", "x", "y")),
    "a number that is too large": (Statement("INSERT INTO notes (id, said, amount) VALUES ('n', 'x', $1)"), (2**70,)),
    "half a character": (ADD, ("n", "\ud800")),
    "no key to sort by": (ADD, ()),
    "no value at all": (ADD, ([], "x")),  # type: ignore[dict-item]
}
NOT_THE_ROWS_FAULT: dict[str, tuple[Statement, Sequence[Value]]] = {
    "no SQL": (Statement("INSERT OR ELSE $1"), ("x",)),
    "no such table": (Statement("INSERT INTO nothing VALUES ($1)"), ("x",)),
}


@pytest.mark.parametrize(
    ("poison", "failure"),
    [
        *((poison, "DatabaseRowError") for poison in POISON.values()),
        *((poison, "DatabaseStatementError") for poison in NOT_THE_ROWS_FAULT.values()),
    ],
    ids=[*POISON, *NOT_THE_ROWS_FAULT],
)
async def test_a_poison_row_fails_its_own_writer_and_nobody_else(
    database: Database, metrics: Metrics, poison: tuple[Statement, Sequence[Value]], failure: str
) -> None:
    """Three among forty that are committed together: the forty are stored, in their order."""
    statement, row = poison
    await database.write(ADD, [("taken", "x")])
    writes = []
    bad = (0, 17, 42)
    for number in range(43):
        if number in bad:
            writes.append(database.write_soon(statement, [row]))
        else:
            writes.append(database.write_soon(APPEND, [("log", f"{number} ")]))

    became = await outcomes(*writes)

    assert became == [failure if number in bad else "stored" for number in range(43)]
    assert await said(database, "log") == "".join(f"{number} " for number in range(43) if number not in bad)
    assert metrics.counter("db_commit_failures", "").value == len(bad)
    assert database.is_up


@given(
    writes=st.lists(
        st.tuples(st.sampled_from(("append", "strictly", "wrap")), st.lists(st.sampled_from("abc"), min_size=1)),
        max_size=30,
    )
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_writes_about_one_key_keep_their_order(
    database: Database, writes: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Whatever statements come in whatever mixture: each note says what it would if they came one by one."""
    run = next(NUMBERS)
    expected: dict[str, str] = defaultdict(str)
    waiting = []
    for number, (what, notes) in enumerate(writes):
        keys = [f"{note}{run}" for note in notes]
        if what == "wrap":
            waiting.append(database.write_soon(WRAP, [(key,) for key in keys]))
            for key in keys:
                if key in expected:
                    expected[key] = f"$9({expected[key]})"
        else:
            statement = APPEND if what == "append" else APPEND_STRICTLY
            waiting.append(database.write_soon(statement, [(key, f"{number}.") for key in keys]))
            for key in keys:
                expected[key] += f"{number}."
    await asyncio.gather(*waiting)

    for note in "abc":
        assert await said(database, f"{note}{run}") == expected.get(f"{note}{run}")


async def test_a_cancelled_write_that_was_not_begun_is_left_out(database: Database) -> None:
    """And those who wait beside it are stored."""
    first, cancelled, last = (asyncio.ensure_future(database.write(ADD, [(note, "x")])) for note in "abc")
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(first, last)

    assert [await said(database, note) for note in "abc"] == ["x", None, "x"]


async def test_a_failure_that_nobody_waits_for_makes_no_noise(database: Database) -> None:
    """It is counted; the event loop does not complain of a future that nobody looked at."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    for _ in range(3):
        with contextlib.suppress(DatabaseRowError):
            await database.write(ADD, [("a", "x")])
        database.write_soon(ADD, [("a", "again")])
        await database.write(APPEND, [("b", "x")])

    assert complaints == []


async def test_what_cannot_be_read_is_an_error(database: Database) -> None:
    """And it says where."""
    for statement, parameters in ((Statement("SELECT $1 FROM nothing"), ("x",)), (SAID, ()), (SAID, ("\ud800",))):
        with pytest.raises(DatabaseError, match="could not be read"):
            await database.read(statement, parameters)

    assert await said(database, "a") is None


async def test_reads_by_key_that_come_together_get_each_their_own_answer(database: Database) -> None:
    """Repeated, missing, and one that cannot be asked: each is answered as if it were alone."""
    await database.write(ADD, [(str(number), f"note {number}") for number in range(100)])
    keys = [str(number * 7 % 120) for number in range(300)]

    answers = await asyncio.gather(
        *(database.read(BY_ID, (key,)) for key in [*keys, "\ud800"]), database.read(COUNT), return_exceptions=True
    )

    assert answers[:300] == [[(key, f"note {key}")] if int(key) < 100 else [] for key in keys]
    assert isinstance(answers[300], DatabaseError)
    assert answers[301] == [(100,)]


async def test_closing_commits_what_waits_and_takes_nothing_more(
    database_location: DatabaseLocation, migrations: Sequence[Migration], metrics: Metrics
) -> None:
    """A write asked for just before the end is stored; one after it is refused at once."""
    tracer = Spans().tracer
    arguments = {"migrations": migrations, "name": "test", "tracer": tracer, "metrics": metrics}
    async with open_database(database_location, **arguments) as database:  # type: ignore[arg-type]
        waiting = [database.write_soon(ADD, [(str(number), "x")]) for number in range(700)]
    assert await outcomes(*waiting) == ["stored"] * 700
    with pytest.raises(DatabaseError, match="is being closed"):
        await database.write(ADD, [("late", "x")])

    assert not database.is_up
    async with open_database(database_location, **arguments) as database:  # type: ignore[arg-type]
        assert await database.read(COUNT) == [(700,)]


async def test_there_is_a_bound_to_what_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes after it is told at once, and when there is room again they may come."""
    monkeypatch.setattr("system.database.grouping.WAITING_ROWS_MAX", 10)
    waiting = [database.write_soon(ADD, [(f"{number}", "x")]) for number in range(12)]

    assert waiting[-1].done(), "refused at once"
    assert await outcomes(*waiting) == ["stored"] * 10 + ["DatabaseError"] * 2
    await database.write(ADD, [("11", "x")])


async def test_each_commit_is_a_span_of_its_own_that_links_to_those_who_waited(
    database_location: DatabaseLocation, migrations: Sequence[Migration], metrics: Metrics
) -> None:
    """One root for the group, with its size and whose it is; a refused one has failed."""
    spans = Spans()
    order = spans.tracer.begin(SpanTemplate("order", SpanKind.SERVER), ROOT).as_parent()
    async with open_database(
        database_location, migrations=migrations, name="test", tracer=spans.tracer, metrics=metrics
    ) as database:
        await asyncio.gather(
            database.write(ADD, [("a", "x"), ("b", "x")], link=order), database.write(ADD, [("c", "x")])
        )
        with pytest.raises(DatabaseRowError):
            await database.write(ADD, [("a", "x")])
    good, bad = spans.ended

    attributes = {each.key: each.value.int_value or each.value.string_value for each in good.attributes}
    assert (good.name, good.parent_span_id, attributes["db.operation.batch.size"]) == ("commit", b"", 3)
    assert attributes["db.system.name"] in {"sqlite", "postgresql"}
    assert [(link.trace_id, link.span_id) for link in good.links] == [(order.trace_id, order.span_id)]
    assert (good.status.code, bad.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)


@contextlib.asynccontextmanager
async def opened(location: DatabaseLocation, *migrations: Migration, name: str = "test") -> AsyncIterator[Database]:
    """The database with this schema."""
    async with open_database(
        location, migrations=migrations, name=name, tracer=Spans().tracer, metrics=Metrics()
    ) as database:
        yield database


MORE = Migration(
    sqlite="ALTER TABLE notes ADD COLUMN more TEXT DEFAULT ';'; UPDATE notes SET said = said || '!';",
    postgres="ALTER TABLE notes ADD COLUMN more TEXT DEFAULT ';'; UPDATE notes SET said = said || '!';",
)
BROKEN = Migration(
    sqlite="CREATE TABLE half (id TEXT); INSERT INTO nothing VALUES (1);",
    postgres="CREATE TABLE half (id TEXT); INSERT INTO nothing VALUES (1);",
)


async def test_a_schema_goes_forward_step_by_step_and_each_step_once(database_location: DatabaseLocation) -> None:
    """Today's data is there tomorrow, changed once."""
    async with opened(database_location, NOTES) as database:
        await database.write(ADD, [("a", "x")])
    for _ in range(2):
        async with opened(database_location, NOTES, MORE) as database:
            assert await database.read(Statement("SELECT said, more FROM notes")) == [("x!", ";")]


async def test_a_step_that_fails_leaves_nothing_behind(database_location: DatabaseLocation) -> None:
    """The start fails, and the next version's start finds what was there before."""
    with pytest.raises(DatabaseOpenError, match=r"cannot be used: .*nothing"):
        async with opened(database_location, NOTES, BROKEN):
            pass

    async with opened(database_location, NOTES, MORE) as database:
        assert await database.read(COUNT) == [(0,)]
        with pytest.raises(DatabaseError):
            await database.read(Statement("SELECT * FROM half"))


async def test_a_schema_newer_than_this_version_keeps_it_from_starting(database_location: DatabaseLocation) -> None:
    """It would not know what it does."""
    async with opened(database_location, NOTES, MORE):
        pass
    with pytest.raises(DatabaseOpenError, match=r"has schema 2.*knows only 1.*TEST_DB"):
        async with opened(database_location, NOTES):
            pass


async def test_many_may_start_at_once(database_location: DatabaseLocation) -> None:
    """One makes the schema, the others wait for it; then all write."""
    async with contextlib.AsyncExitStack() as stack:
        databases = await asyncio.gather(
            *(stack.enter_async_context(opened(database_location, NOTES, MORE)) for _ in range(6))
        )
        await asyncio.gather(*(each.write(ADD, [(str(number), "x")]) for number, each in enumerate(databases)))

        assert [await each.read(COUNT) for each in databases] == [[(6,)]] * 6


async def test_an_outage_can_be_told_from_a_row_and_a_doubt() -> None:
    """Whoever handles a DatabaseError handles all; whoever wants to know which can."""
    assert issubclass(DatabaseRowError, DatabaseError)
    assert issubclass(DatabaseUnknownError, DatabaseError)
    assert not issubclass(DatabaseUnknownError, DatabaseRowError)


def test_a_key_must_be_a_placeholder_of_its_statement() -> None:
    """Placeholders in quotes and comments are none."""
    with pytest.raises(ValueError, match="key=3 is none of the 2 placeholders"):
        Statement("SELECT '$3', \"$4\" FROM notes -- $5\n WHERE id = $1 OR id = $2", key=3)


def test_sqlite_is_told_numbers_instead_of_names() -> None:
    """Placeholders may come in any order and repeatedly; what is quoted stays."""
    statement = Statement("SELECT $2, '$1', \"$1\", $1, $2 -- $1")

    assert statement.sqlite == "SELECT ?2, '$1', \"$1\", ?1, ?2 -- $1"
