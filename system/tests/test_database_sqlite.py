"""What SQLite alone can do to a database: a full disk, a locked file, a sync that fails, a file that is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from system.database import (
    Database,
    DatabaseError,
    DatabaseOpenError,
    DatabaseUnknownError,
    Migration,
    Statement,
    open_database,
)
from system.database.sqlite import SqliteBackend
from system.metrics import Metrics
from system.settings import SqliteLocation
from system.tests.parts import wait_until
from system.tests.spans import Spans

NOTES = Migration(sqlite="CREATE TABLE notes (id TEXT PRIMARY KEY, said TEXT);", postgres="")
ADD = Statement("INSERT INTO notes VALUES ($1, $2)", key=1)
COUNT = Statement("SELECT count(*) FROM notes")
LARGE = "x" * 100_000


@contextlib.asynccontextmanager
async def opened(
    path: Path, migrations: Sequence[Migration] = (NOTES,), *, name: str = "test"
) -> AsyncIterator[Database]:
    """The database in this file."""
    async with open_database(
        SqliteLocation(path=path), migrations=migrations, name=name, tracer=Spans().tracer, metrics=Metrics()
    ) as database:
        yield database


def backend_of(database: Database) -> SqliteBackend:
    """What is behind it."""
    backend: SqliteBackend = database._backend  # type: ignore[attr-defined]
    return backend


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can wait for."""
    monkeypatch.setattr("system.database.grouping.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("system.database.grouping.PROBE_EVERY_S", 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet."""
    return tmp_path / "notes.db"


async def test_reading_never_suspends(path: Path) -> None:
    """No thread, no task: the coroutine ends at its first step."""
    async with opened(path) as database:
        reading = database.read(COUNT)
        with pytest.raises(StopIteration) as ended:
            reading.send(None)

    assert ended.value.value == [(0,)]


async def test_every_commit_is_synced(path: Path) -> None:
    """Asked of the connection itself: the log is synced at each commit, not only when it is emptied."""
    async with opened(path) as database:
        backend = backend_of(database)
        asked = [backend._writes.execute(f"PRAGMA {name}").fetchone() for name in ("synchronous", "journal_mode")]

    assert asked == [(2,), ("wal",)]


async def test_what_was_written_outlives_the_process(path: Path) -> None:
    """Killed right after it was told; the next one finds the row."""
    program = f"""
import asyncio, os, signal
from system.tests.test_database_sqlite import ADD, Path, opened
async def main():
    async with opened(Path({str(path)!r})) as database:
        await database.write(ADD, [("a", "x")])
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2])

    assert ended.returncode == -signal.SIGKILL
    async with opened(path) as database:
        assert await database.read(COUNT) == [(1,)]


async def test_a_file_of_today_is_opened_as_it_is(path: Path) -> None:
    """Made before there were steps: its version says that it has the first one."""
    with contextlib.closing(sqlite3.connect(path)) as today:
        today.executescript(NOTES.sqlite)
        today.executescript("INSERT INTO notes VALUES ('a', 'x'); PRAGMA user_version=1;")

    async with opened(path) as database:
        assert await database.read(COUNT) == [(1,)]


async def test_a_step_may_hold_a_trigger_and_text_with_semicolons(path: Path) -> None:
    """Statements are told apart as SQLite does it."""
    trigger = Migration(
        sqlite="""
        CREATE TRIGGER twice AFTER INSERT ON notes WHEN new.said <> 'a;b' BEGIN
            INSERT INTO notes VALUES (new.id || '2', 'a;b');
            SELECT 1;
        END; -- ; done;
        INSERT INTO notes VALUES ('one', ';')""",
        postgres="",
    )
    async with opened(path, (NOTES, trigger)) as database:
        assert await database.read(COUNT) == [(2,)]


async def test_two_services_cannot_share_a_file(path: Path) -> None:
    """Each would take the other's schema for its own."""
    async with opened(path, name="orders"):
        pass

    with pytest.raises(DatabaseOpenError, match=r"belongs to another service.*PAYMENTS_DB"):
        async with opened(path, name="payments"):
            pass
    async with opened(path, name="orders"):
        pass


async def test_what_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    """It names the file and the variable to set."""
    letter = tmp_path / "letter"
    letter.write_bytes(b"this is a letter, not a database" * 100)

    for path in (letter, tmp_path / "nowhere" / "notes.db", tmp_path):
        with pytest.raises(DatabaseOpenError, match=rf"the database {path} cannot be used: .*; set TEST_DB"):
            async with opened(path):
                pass


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else is writing to the file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


async def test_a_lock_that_is_held_too_long_fails_the_rows_and_not_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored, reading works all the while, and it says that it is not up until a probe worked."""
    monkeypatch.setattr("system.database.sqlite.BUSY_WITHIN_S", 0.05)
    async with opened(path) as database:
        await database.write(ADD, [("a", "x")])
        with locked(path):
            with pytest.raises(DatabaseError, match="locked"):
                await database.write(ADD, [("b", "x")])
            assert not database.is_up
            assert await database.read(COUNT) == [(1,)]
        await wait_until(lambda: database.is_up)
        await database.write(ADD, [("c", "x")])

        assert await database.read(COUNT) == [(2,)]


async def test_a_lock_is_waited_for_without_holding_up_the_event_loop(path: Path) -> None:
    """The write is stored once the lock is gone; other tasks run meanwhile."""
    async with opened(path) as database:
        with locked(path):
            waiting = database.write_soon(ADD, [("a", "x")])
            await wait_until(lambda: database._is_asked)  # type: ignore[attr-defined]
            for _ in range(100):
                await asyncio.sleep(0)
            assert not waiting.done()
        await waiting

        assert await database.read(COUNT) == [(1,)]


@contextlib.contextmanager
def files_limited(size: int) -> Iterator[None]:
    """No file of this process can become larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_write_that_the_disk_refuses_is_not_stored_and_the_next_is(path: Path) -> None:
    """Too large for the file to hold: an error, nothing of it is there, and what comes after works."""
    async with opened(path) as database:
        await database.write(ADD, [("a", "x")])
        with files_limited(150_000):
            with pytest.raises(DatabaseError, match="cannot be written to"):
                await database.write(ADD, [("b", LARGE), ("c", LARGE)])
            await database.write(ADD, [("d", "x")])
            assert database.is_up
        await database.write(ADD, [("b", LARGE)])

        assert await database.read(Statement("SELECT id FROM notes ORDER BY id")) == [("a",), ("b",), ("d",)]


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        what = "a small file system can only be mounted as root"
        if request.config.getoption("--require-backends", default=False):
            pytest.fail(f"--require-backends: {what}")
        pytest.skip(what)
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


async def test_a_full_disk_fails_the_rows_at_hand_and_is_survived(small_disk: Path) -> None:
    """Certainly not stored, reading goes on, readiness is gone and comes back by itself with the room."""
    ballast = small_disk / "ballast"
    async with opened(small_disk / "notes.db") as database:
        await database.write(ADD, [("a", "x")])
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with pytest.raises(DatabaseError, match="full"):
            await database.write(ADD, [("b", LARGE)])
        assert not database.is_up
        assert await database.read(COUNT) == [(1,)]
        ballast.unlink()
        await wait_until(lambda: database.is_up)
        await database.write(ADD, [("c", LARGE)])

        assert await database.read(COUNT) == [(2,)]


class Unsyncable:
    """A connection whose next commit cannot be synced."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, sql: str) -> sqlite3.Cursor:
        """Everything works but the commit."""
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._connection.execute(sql)


async def test_a_sync_that_fails_leaves_a_doubt(path: Path) -> None:
    """The log may hold the rows or not: that is said; the file is opened anew, and the next write works."""
    async with opened(path) as database:
        backend = backend_of(database)
        backend._writes = Unsyncable(backend._writes)  # type: ignore[assignment]
        with pytest.raises(DatabaseUnknownError, match="failed to make a commit durable"):
            await database.write(ADD, [("a", "x")])
        assert not database.is_up
        await database.write(ADD, [("b", "x")])

        assert isinstance(backend._writes, sqlite3.Connection)
        assert database.is_up


async def test_a_disk_that_hangs_does_not_hold_the_exit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing is bounded; the commit is unknown, and the connection is left to the end of the process."""
    monkeypatch.setattr("system.database.grouping.CLOSE_WITHIN_S", 0.05)
    monkeypatch.setattr("system.database.sqlite.CLOSE_WITHIN_S", 0.05)
    async with opened(path) as database:
        backend = backend_of(database)
        release = os.pipe()
        stuck = backend._worker.call(os.read, release[0], 1)
        waiting = database.write_soon(ADD, [("a", "x")])
        await wait_until(lambda: database._in_flight != ())  # type: ignore[attr-defined]

    with pytest.raises(DatabaseUnknownError):
        await waiting
    os.write(release[1], b"x")
    await stuck
    backend._worker._thread.join()
    for end in release:
        os.close(end)
