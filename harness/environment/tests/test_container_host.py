"""The container host: what happens to a container is recorded as for a process, and none is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import nats
import pytest

from harness.environment.containers.docker_socket import DockerError, DockerSocket
from harness.environment.containers.host import ContainerHost
from harness.environment.containers.image_build import build_image, toxiproxy_recipe
from harness.environment.containers.images import (
    POSTGRES_IMAGE,
    POSTGRES_MAJOR,
    TOXIPROXY_IMAGE,
    look_for_image,
    nats_image,
)
from harness.environment.containers.postgres_image import postgres_recipe
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.postgres.server import PostgresServer
from harness.environment.probes import probe_nats
from harness.environment.processes.guardian import CONTAINERS_MARKER, CREATING_PREFIX, OWNER_LABEL, start_time_of
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.supervised import Command
from harness.environment.tests.containers import (
    CutEngine,
    nats_command,
    owned,
    serves,
    unix_server,
)
from harness.environment.tests.small_system import wait_until
from harness.environment.toxiproxy.server import ToxiproxyServer
from harness.errors import EnvironmentFailedError
from harness.records import ProcessEvent


@pytest.fixture
def events() -> list[ProcessEvent]:
    """What was recorded."""
    return []


@pytest.fixture
async def host(docker: DockerSocket, ownership: Ownership, events: list[ProcessEvent]) -> AsyncIterator[ContainerHost]:
    """A container host that ends what it started."""
    async with ContainerHost(
        owner_label=ownership.label, scratch_directory=ownership.scratch_directory, record=events.append
    ) as started:
        yield started


@pytest.fixture
def address(lease: PortLease) -> str:
    """Where the broker under test listens."""
    return f"{LOOPBACK}:{lease.take(1)[0]}"


@pytest.fixture
def broker(image: str, ownership: Ownership, address: str, tmp_path: Path) -> Command:
    """A broker with JetStream, its store in the scratch directory."""
    options = ("--jetstream", "--store_dir", str(ownership.scratch_directory / "store"))
    return nats_command("nats", address, image=image, directory=tmp_path / "logs", options=options)


def story(events: list[ProcessEvent]) -> list[str]:
    """The recorded events by name."""
    return [event.event for event in events]


async def test_a_container_is_started_ready_and_stopped_on_record(
    host: ContainerHost, broker: Command, address: str, events: list[ProcessEvent]
) -> None:
    """The ordinary life of a container, told like that of a process."""
    pid = await host.start(broker)
    assert start_time_of(pid) is not None, "its pid is one of this host"
    await host.wait_ready("nats", serves(address), within_s=10)
    assert host.is_running("nats")

    is_in_time = await host.stop("nats")

    assert is_in_time
    assert start_time_of(pid) is None
    assert story(events) == ["started", "ready", "stopping", "exited"]
    assert {event.pid for event in events} == {pid}
    assert events[-1].detail == "exit code 0"
    assert [event.at_ns for event in events] == sorted(event.at_ns for event in events)
    assert host.unexpected_exits == ()
    assert not host.is_running("nats")


async def test_its_log_lies_where_the_command_wants_it_while_it_runs_and_after_its_end(
    host: ContainerHost, broker: Command, address: str
) -> None:
    """Tails of logs work as for processes, and the file outlives the container."""
    await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)
    await wait_until(lambda: "Server is ready" in broker.log_path.read_text(), what="the log of a running container")

    await host.stop("nats")

    assert broker.log_path.read_text().startswith("--- stormproof: boot 1 of nats at ")
    assert "Server Exiting.." in host.log_tail("nats")


async def test_it_has_this_hosts_network_and_listens_on_loopback_alone(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, broker: Command, address: str
) -> None:
    """Leased ports, links and addresses are those of the embedded backend; and nobody else can come in."""
    await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)

    (name,) = owned(docker, ownership.label)
    made = docker.ask("GET", f"/containers/{name}/json")
    port = int(address.rpartition(":")[2])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [local for local in listening if local.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    assert made["HostConfig"]["NetworkMode"] == "host"
    assert made["HostConfig"]["ReadonlyRootfs"]
    assert made["HostConfig"]["CapDrop"] == ["ALL"]
    assert made["Config"]["User"] == f"{os.geteuid()}:{os.getegid()}"
    assert made["Config"]["Labels"][OWNER_LABEL] == ownership.label
    assert not [entry for entry in made["Config"]["Env"] if "/nowhere" in entry], "PATH and HOME are this host's"


async def test_messages_survive_a_kill_and_a_fresh_container_serves_them(
    host: ContainerHost, broker: Command, address: str, events: list[ProcessEvent]
) -> None:
    """The store lies in the mounted scratch directory; the container itself is thrown away."""
    first = await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)
    connection = await nats.connect(f"nats://{address}", max_reconnect_attempts=0)
    await connection.jetstream().add_stream(name="S", subjects=["s"])
    for number in range(3):
        await connection.jetstream().publish("s", str(number).encode())
    await connection.close()

    await host.kill("nats")
    assert start_time_of(first) is None, "kill is a fault: it has happened when it returns"
    second = await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)

    assert second != first
    connection = await nats.connect(f"nats://{address}")
    assert (await connection.jetstream().stream_info("S")).state.messages == 3
    await connection.close()
    assert story(events) == ["started", "ready", "killed", "exited", "started", "ready"]
    assert events[3].detail == "signal SIGKILL"
    assert host.unexpected_exits == ()


async def test_a_paused_container_answers_nothing_until_it_is_resumed(
    host: ContainerHost, broker: Command, address: str, events: list[ProcessEvent]
) -> None:
    """A pause looks to others like a very slow process, not like a dead one."""
    await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)

    await host.pause("nats")
    assert "in vain" in (await probe_nats(address, 0.2) or "")
    await host.resume("nats")

    assert await probe_nats(address) is None
    assert story(events) == ["started", "ready", "paused", "resumed"]


@pytest.mark.parametrize("wish", ["kill", "stop", "close"])
async def test_a_paused_container_can_be_ended(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, broker: Command, address: str, wish: str
) -> None:
    """What is frozen takes no signal: Docker has to thaw it first."""
    pid = await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)
    await host.pause("nats")

    if wish == "kill":
        await host.kill("nats")
    elif wish == "stop":
        assert await host.stop("nats")
    else:
        await host.close(grace_s=2)
        assert owned(docker, ownership.label) == []

    assert start_time_of(pid) is None
    assert host.unexpected_exits == ()


async def test_stop_kills_who_ignores_its_signal_and_records_it(
    host: ContainerHost, docker: DockerSocket, broker: Command, events: list[ProcessEvent]
) -> None:
    """A stuck shutdown is found, ended and on record."""
    if await look_for_image(docker, POSTGRES_IMAGE) is None:
        await build_image(docker, await postgres_recipe())
    deaf = ("sh", "-c", "trap '' TERM INT; echo deaf; while :; do :; done")
    await host.start(replace(broker, argv=deaf, image=POSTGRES_IMAGE, stop_grace_s=0.05))
    await wait_until(lambda: "deaf" in broker.log_path.read_text().splitlines()[-1], what="the deafness")

    is_in_time = await host.stop("nats")

    assert not is_in_time
    assert story(events) == ["started", "stopping", "killed", "exited"]
    assert "still running 0.05 s after SIGINT" in events[2].detail
    assert events[3].detail == "signal SIGKILL"


async def test_a_container_that_exits_at_once_is_reported_at_once_with_the_tail_of_its_log(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, image: str, address: str, tmp_path: Path
) -> None:
    """Nobody should wait for a time-out to learn what a part said when it died."""
    wrong = nats_command("nats", address, image=image, directory=tmp_path, options=("--config", "/no/such/file"))
    await host.start(wrong)

    async with asyncio.timeout(5):
        with pytest.raises(
            EnvironmentFailedError, match=r"nats ended with exit code 1 before(.|\n)*open /no/such/file"
        ):
            await host.wait_ready("nats", serves(address), within_s=60)

    (exit_,) = host.unexpected_exits
    assert (exit_.process, exit_.how) == ("nats", "exit code 1")
    assert "open /no/such/file" in exit_.log_tail
    await host.close()
    assert owned(docker, ownership.label) == []


async def test_a_container_that_somebody_else_ends_is_an_unexpected_exit(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, broker: Command, address: str
) -> None:
    """A crash in the middle of a run must not pass for a fault of ours."""
    await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)
    (name,) = owned(docker, ownership.label)

    await asyncio.to_thread(docker.signal, name, "SIGKILL")
    await wait_until(lambda: bool(host.unexpected_exits), what="the record of its end")

    (exit_,) = host.unexpected_exits
    assert (exit_.process, exit_.how) == ("nats", "signal SIGKILL")
    assert "Server is ready" in exit_.log_tail
    with pytest.raises(EnvironmentFailedError, match="cannot kill nats: it had ended with signal SIGKILL"):
        await host.kill("nats")


async def test_a_part_that_is_never_ready_is_given_up_with_what_was_seen(host: ContainerHost, broker: Command) -> None:
    """A wait has a deadline, and its error says what was waited for."""
    await host.start(broker)

    with pytest.raises(EnvironmentFailedError, match=r"not ready within 0\.05 s: NATS at .*connection refused"):
        await host.wait_ready("nats", serves("127.0.0.1:9"), within_s=0.05)


async def test_a_taken_port_is_told_in_the_brokers_own_words(
    host: ContainerHost, broker: Command, address: str
) -> None:
    """The host's network also means the host's ports."""
    name, _, port = address.rpartition(":")
    with socket.create_server((name, int(port))):
        await host.start(broker)
        with pytest.raises(EnvironmentFailedError, match="address already in use"):
            await host.wait_ready("nats", serves(address), within_s=10)


async def test_a_running_container_is_not_started_twice(host: ContainerHost, broker: Command) -> None:
    """The second would only fail to listen."""
    await host.start(broker)

    with pytest.raises(EnvironmentFailedError, match="it runs already with pid"):
        await host.start(broker)


async def test_a_command_without_an_image_is_refused(host: ContainerHost, broker: Command) -> None:
    """Not every process of a run is made for a container."""
    with pytest.raises(EnvironmentFailedError, match="cannot start nats in a container: its command names no image"):
        await host.start(replace(broker, image=None))


async def test_a_missing_image_fails_the_start_with_the_remedy(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, broker: Command
) -> None:
    """The error of an air-gapped machine must be the way out."""
    with pytest.raises(EnvironmentFailedError, match="stormproof images build"):
        await host.start(replace(broker, image=nats_image("0.0.0")))

    assert owned(docker, ownership.label) == []


async def test_a_program_that_the_image_has_not_got_leaves_no_container(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, broker: Command
) -> None:
    """Docker creates the container and then cannot start it."""
    with pytest.raises(EnvironmentFailedError, match=r"cannot start nats in a container of nats:.*gnatsd"):
        await host.start(replace(broker, argv=("gnatsd",)))

    assert owned(docker, ownership.label) == []
    assert not list(ownership.scratch_directory.glob(f"{CREATING_PREFIX}*"))


@pytest.mark.parametrize("moment", ["asked", "created", "running"])
async def test_a_start_that_is_cancelled_in_between_leaves_nothing(
    docker: DockerSocket, ownership: Ownership, broker: Command, events: list[ProcessEvent], moment: str
) -> None:
    """Ctrl-C during a start: whatever Docker was asked for is owned, and goes with the host."""
    scratch = ownership.scratch_directory

    def is_there() -> bool:
        if moment == "asked":
            return any(scratch.glob(f"{CREATING_PREFIX}*"))
        names = owned(docker, ownership.label)
        if moment == "created" or not names:
            return bool(names)
        with contextlib.suppress(DockerError):  # listed a moment before it can be asked about
            return docker.state(names[0]).is_running
        return False

    async with ContainerHost(owner_label=ownership.label, scratch_directory=scratch, record=events.append) as host:
        starting = asyncio.get_running_loop().create_task(host.start(broker))
        await wait_until(is_there, what=f"the moment {moment!r} of the start")
        starting.cancel()
        await asyncio.wait({starting})

    assert starting.cancelled() or moment == "running"
    assert owned(docker, ownership.label) == []
    assert not list(scratch.glob(".stormproof-c*")), "nothing is left to the guardian"


async def test_the_end_of_the_scope_ends_everything_although_it_was_cancelled(
    docker: DockerSocket, ownership: Ownership, image: str, lease: PortLease, tmp_path: Path
) -> None:
    """Ctrl-C, twice: the cleanup goes on to its end, and the cancellation is not lost."""
    addresses = [f"{LOOPBACK}:{port}" for port in lease.take(3)]
    events: list[ProcessEvent] = []
    is_up = asyncio.Event()

    async def scope() -> None:
        scratch = ownership.scratch_directory
        async with ContainerHost(owner_label=ownership.label, scratch_directory=scratch, record=events.append) as host:
            async with asyncio.TaskGroup() as starts:
                for number, address in enumerate(addresses):
                    starts.create_task(host.start(nats_command(f"n{number}", address, image=image, directory=tmp_path)))
            is_up.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(scope())
        await is_up.wait()
        assert len(owned(docker, ownership.label)) == 3
        task.cancel()
        await wait_until(lambda: "stopping" in story(events), what="the cleanup to begin")
        task.cancel()

    assert task.cancelled()
    assert owned(docker, ownership.label) == []
    assert story(events).count("exited") == 3


async def test_without_testcontainers_the_error_names_the_extra(
    docker: DockerSocket, ownership: Ownership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with an extra that a plain installation has not got."""
    monkeypatch.delitem(sys.modules, "harness.environment.containers.owned_container", raising=False)
    monkeypatch.setitem(sys.modules, "testcontainers.core.container", None)
    host = ContainerHost(
        owner_label=ownership.label, scratch_directory=ownership.scratch_directory, record=lambda _event: None
    )

    with pytest.raises(EnvironmentFailedError, match=r"pip install 'stormproof\[containers\]'"):
        await host.prepare()


@pytest.mark.parametrize(("answer", "words"), [("nothing", "No such file"), ("hangs", "did not answer GET /info")])
async def test_an_engine_that_does_not_answer_fails_the_start_in_time(
    ownership: Ownership, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, words: str
) -> None:
    """One sentence, and no marker that would make the guardian ask it again."""
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    monkeypatch.setattr(
        "harness.environment.containers.docker_socket.DockerSocket.__init__.__kwdefaults__", {"timeout_s": 0.2}
    )
    host = ContainerHost(
        owner_label=ownership.label, scratch_directory=ownership.scratch_directory, record=lambda _event: None
    )
    began_s = time.monotonic()

    async with unix_server(path if answer == "hangs" else tmp_path / "other.sock", None):
        with pytest.raises(EnvironmentFailedError, match=f"no Docker engine answers: unix://{path}.*{words}"):
            await host.prepare()

    assert time.monotonic() - began_s < 3
    await host.close()
    assert not (ownership.scratch_directory / CONTAINERS_MARKER).exists()


async def test_docker_that_is_stopped_midway_ends_the_run_with_one_sentence_and_later_nothing_is_left(
    docker: DockerSocket,
    temporary: Path,
    broker: Command,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine is gone between two calls; containers run on without it, so their processes are ended without it."""
    engine = CutEngine(tmp_path / "docker.sock", docker.path)
    await engine.open()
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    ownership = Ownership.take("midway", temporary=temporary)
    host = ContainerHost(
        owner_label=ownership.label, scratch_directory=ownership.scratch_directory, record=lambda _event: None
    )
    pid = await host.start(broker)
    await host.wait_ready("nats", serves(address), within_s=10)

    await engine.cut()

    async with asyncio.timeout(20):
        with pytest.raises(EnvironmentFailedError, match=f"cannot kill nats: {engine.url} cannot be asked"):
            await host.kill("nats")
        with pytest.raises(EnvironmentFailedError, match=r"Docker was stopped midway.*ended without it"):
            await host.close(grace_s=0.1)
        with pytest.raises(EnvironmentFailedError, match=r"Docker was stopped midway(.|\n)*docker rm -f"):
            await ownership.release()
    assert start_time_of(pid) is None, "the process is ended by its label"
    assert (ownership.scratch_directory / CONTAINERS_MARKER).exists(), "a later run asks Docker again"
    assert len(owned(docker, ownership.label)) == 1
    await asyncio.to_thread(docker.remove_labelled, OWNER_LABEL, ownership.label)


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 - 1], ids=["somebody-elses", "nobodys"])
async def test_a_container_that_is_no_process_of_this_host_is_refused(
    host: ContainerHost,
    docker: DockerSocket,
    ownership: Ownership,
    broker: Command,
    monkeypatch: pytest.MonkeyPatch,
    pid: int,
) -> None:
    """Its pid means something else here, or nothing: the engine is elsewhere, and so is its network."""
    monkeypatch.setattr("harness.environment.containers.contained.LABEL_WITHIN_S", 0.1)
    monkeypatch.setattr("harness.environment.containers.launch.END_KNOWN_WITHIN_S", 0.1)
    real = DockerSocket.state
    monkeypatch.setattr(DockerSocket, "state", lambda self, name: replace(real(self, name), pid=pid))

    with pytest.raises(EnvironmentFailedError, match=f"its process {pid} is none of this host's"):
        await host.start(broker)

    assert owned(docker, ownership.label) == []


async def test_toxiproxy_runs_in_its_container_with_its_arguments(
    host: ContainerHost, docker: DockerSocket, toxiproxy_binary: Path, address: str, tmp_path: Path
) -> None:
    """Its entry point is another name, its API answers on the leased port."""
    if await look_for_image(docker, TOXIPROXY_IMAGE) is None:
        await build_image(docker, await toxiproxy_recipe(toxiproxy_binary))

    async def find_binary() -> Path:
        return Path("toxiproxy-server")

    proxies = ToxiproxyServer(
        host=host,
        find_binary=find_binary,
        image=TOXIPROXY_IMAGE,
        address=address,
        links=(),
        log_path=tmp_path / "toxiproxy.log",
        environment={},
    )
    await proxies.start()

    assert await proxies.client.version() == "2.12.0"
    assert await host.stop(proxies.name)


async def test_postgresql_makes_its_cluster_and_keeps_it_as_the_owner_of_its_directory(
    host: ContainerHost, docker: DockerSocket, ownership: Ownership, address: str, tmp_path: Path
) -> None:
    """It refuses to be root, and a scratch directory of root's is closed to anybody else; it still really runs."""
    if await look_for_image(docker, POSTGRES_IMAGE) is None:
        await build_image(docker, await postgres_recipe())
    directory = ownership.scratch_directory / "postgres"
    directory.mkdir(mode=0o700)
    server = PostgresServer(
        host=host,
        image=POSTGRES_IMAGE,
        address=address,
        password="not-a-secret",  # noqa: S106 - of this test
        directory=directory,
        log_path=tmp_path / "postgres.log",
        environment={},
        databases=("shop",),
    )
    await server.start()
    connection = await asyncpg.connect(server.url("shop"))
    assert await connection.fetchval("SELECT current_setting('server_version_num')::int / 10000") == POSTGRES_MAJOR
    await connection.execute("CREATE TABLE orders AS SELECT 'o1' AS key")

    await host.kill(server.name)
    connection.terminate()
    await server.start()

    connection = await asyncpg.connect(server.url("shop"))
    assert await connection.fetchval("SELECT key FROM orders") == "o1"
    assert await host.stop(server.name, grace_s=10), "its image's stop signal does not wait for a client to leave"
    connection.terminate()
    assert host.unexpected_exits == ()
