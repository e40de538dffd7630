"""Nothing outlives the harness: it is killed at moments spread over its life, on every backend, and nothing is left.

The counting is `harness.benchmarks.leaks`, in a process of its own that adopts every orphan, so that nothing can hide.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.benchmarks.killing import wait_until
from harness.benchmarks.leftovers import KINDS, Left, left_of, suspect
from harness.environment.choice import BackendChoice
from harness.environment.processes.guardian import OWNER_LABEL, OWNER_VARIABLE, labels_of, own_processes, start_time_of
from harness.errors import StormproofError
from harness.fixtures.presence import ensure_present

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 30.0
KILLS_WITHIN_S = 170.0

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")


def leaks(*arguments: str) -> list[dict[str, object]]:
    """Kill and count; return what the benchmark says of each kill, with which its exit code must agree."""
    finished = subprocess.run(
        [sys.executable, "-m", "harness.benchmarks.leaks", "--json", "--within", str(WITHIN_S), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=KILLS_WITHIN_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.stdout, f"exit code {finished.returncode}: {finished.stderr}"
    kills = json.loads(finished.stdout)
    assert isinstance(kills, list)
    assert finished.returncode == (1 if any(stayed(kill) for kill in kills) else 0), finished.stderr
    return kills


def stayed(kill: dict[str, object]) -> dict[str, object]:
    """What was left of this one in the end, by kind, where there is any."""
    counts = kill["after_next_start"] or kill["left"]
    assert isinstance(counts, dict)
    return {kind: what for kind, what in counts.items() if what}


def had(kill: dict[str, object], kind: str) -> int:
    """How many things of a kind there were when it was killed."""
    counts = kill["had"]
    assert isinstance(counts, dict)
    return int(counts[kind])


def at(*moments: str) -> list[str]:
    """The words that name these moments."""
    return [word for moment in moments for word in ("--at", moment)]


async def require(request: pytest.FixtureRequest, backend: str) -> None:
    """Skip by name where a backend cannot be had, or fail where all are required."""
    try:
        await ensure_present(BackendChoice(name=backend), print)
    except StormproofError as error:
        if request.config.getoption("--require-backends"):
            pytest.fail(f"--require-backends: {backend}: {error}")
        pytest.skip(f"{backend} cannot be had: {error}")


@pytest.mark.parametrize(
    ("backend", "moments"),
    [
        # Over its life: first word, first process, all processes, ready, fault in force, fault healed, settling.
        ("embedded", ("line:1", "processes:1", "processes:5", "line:3", "line:4", "line:5", "line:6")),
        ("cluster", ("processes:2", "processes:6", "line:3", "line:4")),
        ("container", ("line:1", "line:2", "processes:1", "line:3", "line:4")),
        ("cluster-container", ("processes:2", "line:3")),
    ],
)
async def test_sigkill_of_a_run_leaves_nothing(
    request: pytest.FixtureRequest, backend: str, moments: tuple[str, ...]
) -> None:
    """Whenever it comes: no process, container, network, port, shared memory, directory, lock or file."""
    await require(request, backend)

    kills = leaks("--what", "run", *at(*moments), "--", "--backend", backend)

    assert [stayed(kill) for kill in kills] == [{} for _ in moments]
    ready = kills[moments.index("line:3")]
    assert had(ready, "processes") >= 4, "the guardian and three processes of the system: the kill would prove nothing"
    assert had(ready, "containers") == {"container": 2, "cluster-container": 4}.get(backend, 0)
    assert had(ready, "directories") == 1
    assert had(ready, "locks") >= 9


@pytest.mark.parametrize("backend", ["embedded", "container"])
async def test_sigkill_of_up_with_postgresql_leaves_nothing(request: pytest.FixtureRequest, backend: str) -> None:
    """A server that leaves its label, its group and its session behind, and shared memory to the system."""
    await require(request, backend)

    kills = leaks("--what", "up", *at("processes:2", "line:3"), "--", "--backend", backend, "--postgres")

    assert [stayed(kill) for kill in kills] == [{}, {}]
    if backend == "embedded":
        assert had(kills[1], "shared_memory") == 1, "there was nothing to be left"


@pytest.mark.parametrize(
    ("backend", "name", "moment"),
    [
        ("cluster", "INT", "processes:3"),
        ("cluster", "TERM", "line:4"),
        ("container", "INT", "line:4"),
        ("container", "TERM", "processes:1"),
    ],
)
async def test_an_interrupted_run_leaves_nothing(
    request: pytest.FixtureRequest, backend: str, name: str, moment: str
) -> None:
    """Whatever it was doing; what `embedded` does about it is told by `scenarios/test_main_job.py`."""
    await require(request, backend)

    (kill,) = leaks("--what", "run", "--signal", name, *at(moment), "--", "--backend", backend)

    assert stayed(kill) == {}
    assert had(kill, "processes"), "there was nothing to be left"


def test_sigkill_of_pytest_leaves_nothing() -> None:
    """A test's run goes with the pytest that drove it."""
    kills = leaks("--what", "pytest", *at("processes:2", "line:1"))

    assert [stayed(kill) for kill in kills] == [{}, {}]
    assert had(kills[1], "processes") >= 6


def test_sigkill_of_a_doctor_leaves_nothing() -> None:
    """It starts real parts as well."""
    kills = leaks("--what", "doctor", *at("processes:1", "line:1", "processes:4"))

    assert [stayed(kill) for kill in kills] == [{}, {}, {}]


def test_what_is_left_without_a_guardian_is_counted_and_the_next_start_removes_it() -> None:
    """The proof that this counting can fail: somebody kills the guardian first."""
    (kill,) = leaks("--what", "up", "--unguarded", "--within", "0.5", *at("line:3"))

    left = kill["left"]
    assert isinstance(left, dict)
    # Another run on this machine may have reaped the processes meanwhile, but not what lies in this directory.
    assert len(left["directories"]) == 1
    assert left["locks"]
    assert kill["gone_s"] is None
    assert stayed(kill) == {}


def test_a_worker_of_xdist_that_crashes_leaves_nothing(tmp_path: Path) -> None:
    """Its harness is the worker, not the pytest that a person sees."""
    pytest.importorskip("xdist")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    test = tmp_path / "test_waits.py"
    test.write_text("import asyncio\n\nasync def test_that_waits(live_run):\n    await asyncio.Event().wait()\n")
    words = ["-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "-n", "1", "--max-worker-restart", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *words, "--basetemp", str(tmp_path / "base"), str(test)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            wait_until(lambda: len(workers_of(process.pid)) == 1, WITHIN_S, "a worker that owns five processes")
            (worker,) = workers_of(process.pid)
            crashed = suspect(worker, f"{worker}:{start_time_of(worker)}:", temporary)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: left_of(crashed).total == 0, WITHIN_S, "nothing to be left")
            said, _ = process.communicate(timeout=WITHIN_S)
        finally:
            process.kill()
    assert "worker 'gw0' crashed" in said


def workers_of(pid: int) -> list[int]:
    """Which descendants own five processes or more."""
    owners = [labels_of(each).get(OWNER_VARIABLE, "").partition(":")[0] for each in own_processes()]
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children() if owners.count(str(child.pid)) >= 5]
    return []


HOARDER = """
import os, socket, subprocess, sys, time
from multiprocessing import shared_memory
from pathlib import Path

temporary = Path(os.environ["TMPDIR"])
labelled = {**os.environ, "STORMPROOF_OWNER": sys.argv[1]}
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
sleeper = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
subprocess.Popen(sleeper, env=labelled, pass_fds=[listener.fileno()], start_new_session=True)
plain = {name: value for name, value in os.environ.items() if not name.startswith("STORMPROOF")}
subprocess.Popen(sleeper, env=plain, start_new_session=True)
(temporary / "stormproof-hoard").mkdir()
(temporary / "stormproof-ports-0").mkdir()
(temporary / "stormproof-ports-0" / str(port)).touch()
(temporary / "something").touch()
print("hoarded", flush=True)
time.sleep(600)
"""


@pytest.fixture
def hoarder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A process that owns one of each kind, and nobody who would clean up after it."""
    # Of an owner that lives, or the next start of any run on this machine would reap what carries it.
    label = f"{os.getpid()}:{start_time_of(os.getpid())}:hoarder"
    with subprocess.Popen(
        [sys.executable, "-c", HOARDER, label],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hoarded\n"
        family = psutil.Process(process.pid).children(recursive=True)
        try:
            yield process, tmp_path, label
        finally:
            process.kill()
            for each in family:
                with contextlib.suppress(psutil.Error):
                    each.kill()


def test_each_kind_that_is_left_is_seen(hoarder: tuple[subprocess.Popen[str], Path, str]) -> None:
    """One by its label, one by its descent alone, a port that somebody still listens at, and what lies about."""
    process, temporary, label = hoarder
    before = suspect(process.pid, label, temporary)
    process.kill()
    process.wait()

    left = left_of(before)

    assert len(left.processes) == 2
    assert len(left.ports) == 1
    assert left.directories == ("stormproof-hoard",)
    assert len(left.locks) == 1
    assert left.files == ("something",)
    assert left.total == sum(left.counts().values()) == len(left.words()) == 6


def test_a_port_that_somebody_else_leased_meanwhile_is_not_blamed_on_it(
    hoarder: tuple[subprocess.Popen[str], Path, str],
) -> None:
    """Other runs on this machine lease ports too, perhaps the very same."""
    process, temporary, label = hoarder
    blamed, another = (suspect(process.pid, owner, temporary) for owner in (label, "1:another:"))
    process.kill()
    process.wait()

    assert len(left_of(blamed).ports) == 1
    assert left_of(another).ports == ()


def test_nothing_is_left_of_what_never_was(tmp_path: Path) -> None:
    """Zero is zero."""
    left = left_of(suspect(2**22 - 1, "4194303:0:", tmp_path))

    assert left == Left()
    assert left.counts() == dict.fromkeys(KINDS, 0)


async def test_containers_and_networks_that_are_left_are_seen(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """By their label, and only this one's."""
    docker = pytest.importorskip("docker")
    await require(request, "container")
    label = f"{os.getpid()}:{start_time_of(os.getpid())}:counted"
    client = docker.from_env()
    image = next(tag for image in client.images.list("nats") for tag in image.tags)
    container = client.containers.create(image, labels={OWNER_LABEL: label}, network="none")
    network = client.networks.create("stormproof-counted", labels={OWNER_LABEL: label})
    try:
        seen = left_of(suspect(os.getpid(), label, tmp_path / "nowhere"))
        anothers = left_of(suspect(os.getpid(), "1:another:", tmp_path / "nowhere"))
    finally:
        container.remove(force=True)
        network.remove()
        client.close()

    assert seen.containers == (container.name,)
    assert seen.networks == ("stormproof-counted",)
    assert (anothers.containers, anothers.networks) == ((), ())
