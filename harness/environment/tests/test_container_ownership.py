"""No container of a run outlives its harness, and nobody else's is ever touched."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from harness.environment.containers.docker_socket import DockerSocket
from harness.environment.containers.host import ContainerHost
from harness.environment.containers.ownership import (
    NAMESPACE_LABEL,
    RUN_LABEL,
    USER_LABEL,
    container_labels,
    reap_stale_containers,
)
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.processes import guardian
from harness.environment.processes.guardian import CONTAINERS_MARKER, CREATING_PREFIX, OWNER_LABEL
from harness.environment.processes.ownership import Owner, Ownership, reap_stale
from harness.environment.tests.containers import CutEngine, nats_command, owned, serves
from harness.environment.tests.small_system import owned_by, scratch_directories, wait_until

VANISH_WITHIN_S = 1.0
THREE = ["0", "1", "2"]

HARNESS = """
import asyncio, sys
from pathlib import Path
from harness.environment.containers.host import ContainerHost
from harness.environment.processes.ownership import Ownership
from harness.environment.tests.containers import nats_command, serves

async def main():
    image, logs, *addresses = sys.argv[1:]
    ownership = Ownership.take("killed")
    host = ContainerHost(
        owner_label=ownership.label,
        scratch_directory=ownership.scratch_directory,
        record=lambda event: print(event.process, event.event, flush=True),
    )
    print(ownership.label, ownership.guardian_pid, flush=True)
    for number, address in enumerate(addresses):
        await host.start(nats_command(f"n{number}", address, image=image, directory=Path(logs)))
        await host.wait_ready(f"n{number}", serves(address), within_s=10)
    print("up", flush=True)
    if sys.stdin.readline().startswith("pause"):
        await host.pause("n0")
        print("frozen", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture
async def strangers(docker: DockerSocket, image: str) -> AsyncIterator[list[str]]:
    """Containers that are not ours to end, of every kind; their names. Created, not started: that is harm enough."""
    started = guardian.start_time_of(os.getpid())
    assert started is not None
    living = container_labels(Owner(pid=os.getpid(), started=started, run_id="living-1").label)
    dead = container_labels(Owner(pid=os.getpid(), started="1", run_id="dead-1").label)
    kinds = {
        "unlabelled": {},
        "of-a-living-run": living,
        "of-another-user": {**dead, USER_LABEL: "4711"},
        "of-another-namespace": {**dead, NAMESPACE_LABEL: "pid:[1]"},
        "of-somebody-with-our-label": {OWNER_LABEL: "nonsense"},
    }
    token = secrets.token_hex(4)
    names = [await asyncio.to_thread(create, f"{kind}-{token}", image, labels) for kind, labels in kinds.items()]
    yield names
    for name in names:
        await asyncio.to_thread(docker.remove, name)


class Run:
    """A harness of its own with containers, that can be killed."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        """child: runs HARNESS."""
        self.child = child
        label, guardian_pid = self.next_line().split()
        self.label, self.guardian_pid = label, int(guardian_pid)

    def next_line(self) -> str:
        """What it says next."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline().strip()
        assert line, f"the harness ended with {self.child.wait()}"
        return line

    def wait_line(self, wanted: str) -> None:
        """Return when it has said this."""
        while self.next_line() != wanted:
            pass

    def tell(self, line: str) -> None:
        """Tell it something."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()

    def die(self) -> None:
        """SIGKILL."""
        self.child.kill()
        self.child.wait()


@pytest.fixture
def run(image: str, temporary: Path, tmp_path: Path, lease: PortLease) -> Iterator[Run]:
    """A harness that starts three containers."""
    addresses = [f"{LOOPBACK}:{port}" for port in lease.take(3)]
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, image, str(tmp_path), *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as child:
        yield Run(child)
        child.kill()


def create(name: str, image: str, labels: dict[str, str]) -> str:
    """Create a container with testcontainers' own client, as any program on this host might."""
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 - an extra

    client = DockerClient()
    try:
        client.create(image, name=name, labels=labels, network="none")
    finally:
        client.client.close()
    return name


def exist(docker: DockerSocket, names: list[str]) -> list[str]:
    """Those of these containers that are there."""
    there = {row["Names"][0].lstrip("/") for row in docker.ask("GET", "/containers/json", {"all": "1"})}
    return [name for name in names if name in there]


async def none_left(docker: DockerSocket, label: str) -> None:
    """Return when no container of a run is listed any more; fail when that takes longer than it may."""
    began_s = time.monotonic()
    while left := await asyncio.to_thread(owned, docker, label):
        assert time.monotonic() - began_s < VANISH_WITHIN_S, f"still there after {VANISH_WITHIN_S:g} s: {left}"
        await asyncio.sleep(0.01)


async def test_sigkill_of_the_harness_removes_its_three_containers_and_no_others(
    docker: DockerSocket, run: Run, strangers: list[str], temporary: Path
) -> None:
    """The guardian does it, within a second; strangers' containers and those of living runs stay."""
    run.wait_line("up")
    assert len(owned(docker, run.label)) == 3

    run.die()

    await none_left(docker, run.label)
    await wait_until(lambda: not owned_by(run.child.pid), what="the end of the guardian")
    assert exist(docker, strangers) == strangers
    assert not [name for name in scratch_directories(temporary) if name.startswith("stormproof-killed")]


async def test_sigkill_of_the_harness_removes_a_paused_container(docker: DockerSocket, run: Run) -> None:
    """Frozen processes take no SIGKILL: only Docker can thaw them."""
    run.wait_line("up")
    run.tell("pause")
    run.wait_line("frozen")

    run.die()

    await none_left(docker, run.label)
    await wait_until(lambda: not owned_by(run.child.pid), what="the end of the guardian")


@pytest.mark.parametrize("seed", range(3))
async def test_sigkill_while_containers_are_being_created_leaves_none(
    docker: DockerSocket, run: Run, temporary: Path, seed: int
) -> None:
    """Docker goes on creating what a dead harness has asked for; the guardian waits for it."""
    scratch = temporary / next(name for name in scratch_directories(temporary) if name.startswith("stormproof-killed"))
    wanted = f"{CREATING_PREFIX}*-n{seed % 3}-1"
    await wait_until(lambda: any(scratch.glob(wanted)), what="a container to be asked for")
    await asyncio.sleep(random.Random(seed).uniform(0, 0.1))  # noqa: S311 - any moment of the creation will do

    run.die()

    await wait_until(lambda: not owned_by(run.child.pid), what="the end of the guardian")
    assert owned(docker, run.label) == []
    assert not scratch.exists()


async def test_a_container_that_docker_creates_after_the_death_of_its_harness_is_removed(
    docker: DockerSocket, image: str, ownership: Ownership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker was asked for it, and was slow: the guardian's first look finds nothing, and it looks again."""
    name = f"late-{secrets.token_hex(4)}"
    (ownership.scratch_directory / CONTAINERS_MARKER).write_text(str(docker.path))
    (ownership.scratch_directory / f"{CREATING_PREFIX}{name}").touch()
    client = guardian._by_path("containers/docker_socket").DockerSocket
    remove_labelled = client.remove_labelled
    first_look = threading.Event()

    def watched(*arguments: str) -> frozenset[str]:
        removed: frozenset[str] = remove_labelled(*arguments)
        first_look.set()
        return removed

    monkeypatch.setattr(client, "remove_labelled", watched)
    removing = asyncio.create_task(
        asyncio.to_thread(guardian.remove_containers, ownership.label, ownership.scratch_directory)
    )
    await asyncio.to_thread(first_look.wait, 5)
    await asyncio.to_thread(create, name, image, container_labels(ownership.label))

    assert await removing == 1
    assert exist(docker, [name]) == []
    (ownership.scratch_directory / f"{CREATING_PREFIX}{name}").unlink()


@pytest.mark.alone
async def test_what_a_crash_of_harness_and_guardian_left_is_reaped_by_the_next_start(
    docker: DockerSocket, run: Run, strangers: list[str], temporary: Path
) -> None:
    """Even of an embedded run, which asks Docker because the scratch directory says that there are containers."""
    run.wait_line("up")
    assert reap_stale(temporary=temporary).containers == 0, "a living run is not stale"
    os.kill(run.guardian_pid, signal.SIGKILL)
    run.die()
    await wait_until(lambda: guardian.start_time_of(run.guardian_pid) is None, what="the guardian's death")
    assert len(owned(docker, run.label)) == 3

    reaped = reap_stale(temporary=temporary)

    assert (reaped.containers, reaped.directories) == (3, 1)
    assert owned(docker, run.label) == []
    assert exist(docker, strangers) == strangers


@pytest.mark.alone
async def test_containers_whose_scratch_directory_is_gone_are_reaped_by_the_next_run_with_containers(
    docker: DockerSocket, image: str, strangers: list[str], ownership: Ownership
) -> None:
    """Somebody has emptied the temporary directory; the labels still say whose they are."""
    dead = Owner(pid=os.getpid(), started="1", run_id=f"dead-{secrets.token_hex(4)}").label
    await asyncio.to_thread(create, f"stale-{secrets.token_hex(4)}", image, container_labels(dead))
    said: list[str] = []
    host = ContainerHost(
        owner_label=ownership.label,
        scratch_directory=ownership.scratch_directory,
        record=lambda _event: None,
        progress=said.append,
    )

    await host.prepare()

    assert owned(docker, dead) == []
    assert said == ["removed what a crashed run left: 1 containers"]
    assert exist(docker, strangers) == strangers
    assert await asyncio.to_thread(reap_stale_containers, docker) == 0
    await host.close()


@pytest.mark.alone
async def test_a_stale_run_whose_docker_is_gone_loses_its_processes_now_and_its_containers_later(
    docker: DockerSocket, run: Run, temporary: Path, tmp_path: Path
) -> None:
    """What cannot be removed now stays marked, at the cost of two small files."""
    engine = CutEngine(tmp_path / "docker.sock", docker.path)
    run.wait_line("up")
    os.kill(run.guardian_pid, signal.SIGSTOP)  # so that the marker can be changed behind its back
    (scratch,) = temporary.glob("stormproof-killed-*")
    (scratch / CONTAINERS_MARKER).write_text(str(engine.socket))
    os.kill(run.guardian_pid, signal.SIGKILL)
    run.die()
    pids = [docker.state(name).pid for name in owned(docker, run.label)]
    assert all(guardian.start_time_of(pid) for pid in pids)

    reaped = reap_stale(temporary=temporary)

    assert (reaped.containers, reaped.directories) == (0, 0)
    assert [guardian.start_time_of(pid) for pid in pids] == [None] * 3
    assert sorted(path.name for path in scratch.iterdir()) == [CONTAINERS_MARKER, guardian.MARKER]
    await engine.open()
    assert (await asyncio.to_thread(reap_stale, temporary=temporary)).containers == 3
    assert not scratch.exists()
    await engine.cut()


async def test_a_container_says_whose_it_is(docker: DockerSocket, ownership: Ownership) -> None:
    """By label: owner, run, pid namespace and user."""
    labels = container_labels(ownership.label)

    assert labels[OWNER_LABEL] == ownership.label
    assert labels[RUN_LABEL] == ownership.owner.run_id
    assert labels[USER_LABEL] == str(os.geteuid())
    assert labels[NAMESPACE_LABEL] == str(Path("/proc/self/ns/pid").readlink())


async def test_after_a_clean_end_the_guardian_has_nothing_to_ask_docker(
    docker: DockerSocket, image: str, temporary: Path, tmp_path: Path, lease: PortLease
) -> None:
    """The host removes its containers itself, and then the mark that it had any."""
    ownership = Ownership.take("clean", temporary=temporary)
    host = ContainerHost(
        owner_label=ownership.label, scratch_directory=ownership.scratch_directory, record=lambda _event: None
    )
    address = f"{LOOPBACK}:{lease.take(1)[0]}"
    await host.start(nats_command("nats", address, image=image, directory=tmp_path))
    await host.wait_ready("nats", serves(address), within_s=10)
    assert (ownership.scratch_directory / CONTAINERS_MARKER).read_text() == str(docker.path)

    await host.close()

    assert not (ownership.scratch_directory / CONTAINERS_MARKER).exists()
    await ownership.release()
    assert owned(docker, ownership.label) == []
