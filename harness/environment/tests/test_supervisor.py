"""The supervisor: what happens to a process is recorded, and nothing is left running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.probes import Probe, probe_http
from harness.environment.processes.guardian import OWNER_VARIABLE, labels_of, start_time_of
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.supervised import Command, log_tail
from harness.environment.processes.supervisor import Supervisor
from harness.environment.tests.small_system import server_argv, wait_until
from harness.errors import EnvironmentFailedError


@pytest.fixture
def address(lease: PortLease) -> str:
    """Where the server under test listens."""
    return f"{LOOPBACK}:{lease.take(1)[0]}"


def command(tmp_path: Path, address: str, *, name: str = "server", grace_s: float = 5.0, **variables: str) -> Command:
    """A small server."""
    return Command(
        name=name,
        argv=server_argv(),
        environment={"LISTEN": address, "PATH": os.defpath, **variables},
        log_path=tmp_path / "logs" / f"{name}.log",
        stop_grace_s=grace_s,
    )


def answers(address: str) -> Probe:
    """A probe of the small server."""
    return lambda: probe_http(address, "/ready")


def story(supervisor: Supervisor) -> list[str]:
    """The recorded events by name."""
    return [event.event for event in supervisor.events]


async def test_a_process_is_started_ready_and_stopped_on_record(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """The ordinary life of a process."""
    pid = await supervisor.start(command(tmp_path, address))
    await supervisor.wait_ready("server", answers(address), within_s=10)
    is_in_time = await supervisor.stop("server")

    assert is_in_time
    assert story(supervisor) == ["started", "ready", "stopping", "exited"]
    assert {event.pid for event in supervisor.events} == {pid}
    assert supervisor.events[-1].detail == "signal SIGTERM"
    assert [event.at_ns for event in supervisor.events] == sorted(event.at_ns for event in supervisor.events)
    assert supervisor.unexpected_exits == ()


async def test_a_process_that_dies_at_start_is_reported_at_once_with_the_tail_of_its_log(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """Nobody should wait for a time-out to learn what a process said when it died."""
    await supervisor.start(command(tmp_path, address, DIES="1"))

    async with asyncio.timeout(5):
        with pytest.raises(EnvironmentFailedError, match=r"exit code 1(.|\n)*cannot find my configuration"):
            await supervisor.wait_ready("server", answers(address), within_s=60)

    (exit_,) = supervisor.unexpected_exits
    assert (exit_.process, exit_.how) == ("server", "exit code 1")
    assert "cannot find my configuration" in exit_.log_tail


async def test_a_process_that_is_never_ready_is_given_up_with_what_was_seen(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """A wait has a deadline, and its error says what was waited for."""
    await supervisor.start(command(tmp_path, address))

    with pytest.raises(EnvironmentFailedError, match=r"not ready within 0\.05 s: GET /ready at .*connection refused"):
        await supervisor.wait_ready("server", answers("127.0.0.1:9"), within_s=0.05)


async def test_stop_kills_who_ignores_sigterm_and_records_it(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """A stuck shutdown is found, ended and on record."""
    await supervisor.start(command(tmp_path, address, grace_s=0.05, DEAF="1"))
    await supervisor.wait_ready("server", answers(address), within_s=10)

    is_in_time = await supervisor.stop("server")

    assert not is_in_time
    assert story(supervisor) == ["started", "ready", "stopping", "killed", "exited"]
    assert "still running 0.05 s after SIGTERM" in supervisor.events[3].detail
    assert supervisor.events[4].detail == "signal SIGKILL"


async def test_a_killed_process_is_gone_when_kill_returns_and_its_end_was_expected(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """Kill is a fault: it must have happened when the fault window says so."""
    pid = await supervisor.start(command(tmp_path, address))
    await supervisor.kill("server")

    assert start_time_of(pid) is None
    assert story(supervisor) == ["started", "killed", "exited"]
    assert supervisor.unexpected_exits == ()


async def test_a_process_that_ends_by_itself_is_an_unexpected_exit(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """A crash in the middle of a run must not pass for a fault of ours."""
    pid = await supervisor.start(command(tmp_path, address))
    os.kill(pid, signal.SIGABRT)
    await wait_until(lambda: not supervisor.is_running("server"), what="the end of the server")

    assert [(exit_.process, exit_.pid, exit_.how) for exit_ in supervisor.unexpected_exits] == [
        ("server", pid, "signal SIGABRT")
    ]
    with pytest.raises(EnvironmentFailedError, match="cannot kill server: it had ended with signal SIGABRT"):
        await supervisor.kill("server")


async def test_a_paused_process_answers_nothing_until_it_is_resumed(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """A pause looks to others like a very slow process, not like a dead one."""
    await supervisor.start(command(tmp_path, address))
    await supervisor.wait_ready("server", answers(address), within_s=10)

    await supervisor.pause("server")
    seen = await probe_http(address, "/ready", 0.1)
    await supervisor.resume("server")

    assert seen is not None
    assert "no answer within 0.1 s" in seen
    assert await probe_http(address, "/ready", 5) is None
    assert story(supervisor)[2:] == ["paused", "resumed"]


COUNTER = """
import mmap, os, sys, threading, time

def count(shared):
    while True:
        shared[0] += 1

with open(sys.argv[1], "r+b") as file:
    shared = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
threading.Thread(target=count, args=(shared,), daemon=True).start()
os.sched_setaffinity(0, {int(sys.argv[2])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
time.sleep(600)
"""
HOG = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@pytest.mark.skipif(sys.platform != "linux", reason="whether a thread is stopped is read from /proc")
async def test_when_a_pause_has_returned_no_thread_takes_another_step(supervisor: Supervisor, tmp_path: Path) -> None:
    """The kernel tells one thread, which tells the others when it gets a processor: here it waits long for one."""
    counts = tmp_path / "counts"
    counts.write_bytes(bytes(8))
    core = str(min(os.sched_getaffinity(0)))
    arguments = {"counter": (COUNTER, str(counts), core), "hog": (HOG, core)}
    for name, words in arguments.items():
        log = tmp_path / f"{name}.log"
        await supervisor.start(Command(name=name, argv=(sys.executable, "-c", *words), environment={}, log_path=log))
    seen = [counts.read_bytes()]

    for _ in range(5):
        await wait_until(lambda: counts.read_bytes() != seen[-1], what="counting")
        await supervisor.pause("counter")
        seen.append(counts.read_bytes())
        await asyncio.sleep(0.02)
        assert counts.read_bytes() == seen[-1]
        await supervisor.resume("counter")


async def test_stopping_a_paused_process_resumes_it_so_that_it_can_end(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """SIGTERM stays pending on a stopped process; its grace would run out in vain."""
    await supervisor.start(command(tmp_path, address))
    await supervisor.pause("server")

    assert await supervisor.stop("server")
    assert story(supervisor) == ["started", "paused", "stopping", "resumed", "exited"]


async def test_a_restart_appends_to_the_log_and_the_tail_is_the_new_boots(
    supervisor: Supervisor, tmp_path: Path, address: str
) -> None:
    """One log per process and run; what an earlier boot said must not be shown as the reason of a later death."""
    first = await supervisor.start(command(tmp_path, address, PLANTED="first"))
    await supervisor.wait_ready("server", answers(address), within_s=10)
    second = await supervisor.restart("server")
    await supervisor.wait_ready("server", answers(address), within_s=10)

    text = (tmp_path / "logs" / "server.log").read_text()
    assert first != second
    assert text.count("born first") == 2
    assert "boot 1 of server" in text
    assert "boot 2 of server" in text
    assert log_tail(tmp_path / "logs" / "server.log") == "  born first"


async def test_a_program_that_does_not_exist_is_named(supervisor: Supervisor, tmp_path: Path) -> None:
    """The sentence says which process and which program."""
    missing = Command(name="server", argv=("/no/such/program",), environment={}, log_path=tmp_path / "server.log")

    with pytest.raises(EnvironmentFailedError, match="cannot start server: /no/such/program: No such file"):
        await supervisor.start(missing)


async def test_a_running_process_is_not_started_twice(supervisor: Supervisor, tmp_path: Path, address: str) -> None:
    """The second would only fail to listen."""
    await supervisor.start(command(tmp_path, address))

    with pytest.raises(EnvironmentFailedError, match="it runs already with pid"):
        await supervisor.start(command(tmp_path, address))


async def test_what_a_process_started_dies_with_it(supervisor: Supervisor, tmp_path: Path) -> None:
    """A wrapper's child is in its process group and goes with it."""
    script = (
        "import subprocess, sys\nchild = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\nchild.wait()"
    )
    log_path = tmp_path / "wrapper.log"
    await supervisor.start(
        Command(
            name="wrapper",
            argv=(sys.executable, "-S", "-c", script),
            environment={"PATH": os.defpath},
            log_path=log_path,
        )
    )

    def last_line() -> str:
        return log_path.read_text().splitlines()[-1]

    await wait_until(lambda: last_line().isdecimal(), what="the child's pid in the log")
    grandchild = int(last_line())

    await supervisor.stop("wrapper")

    await wait_until(lambda: start_time_of(grandchild) is None, what="the end of the grandchild")


async def test_every_process_carries_the_owner_label_and_a_session_of_its_own(
    supervisor: Supervisor, ownership: Ownership, tmp_path: Path, address: str
) -> None:
    """The label is how the guardian finds it; the session is why Ctrl-C reaches the harness alone."""
    pid = await supervisor.start(command(tmp_path, address))
    async with asyncio.timeout(5):
        while not labels_of(pid):  # noqa: ASYNC110 - in the middle of its exec a process has no environment to read
            await asyncio.sleep(0.01)

    assert labels_of(pid) == {OWNER_VARIABLE: ownership.label}
    assert os.getsid(pid) == pid


async def test_the_end_of_the_scope_ends_everything_although_it_was_cancelled(
    ownership: Ownership, tmp_path: Path, lease: PortLease
) -> None:
    """Ctrl-C, twice: the cleanup goes on to its end, and the cancellation is not lost."""
    supervisor = Supervisor(owner_label=ownership.label)
    addresses = [f"{LOOPBACK}:{port}" for port in lease.take(2)]
    is_up = asyncio.Event()
    is_stopping = asyncio.Event()

    async def scope() -> None:
        async with supervisor:
            await supervisor.start(command(tmp_path, addresses[0], name="first"))
            await supervisor.start(command(tmp_path, addresses[1], name="second", DEAF="1"))
            await supervisor.wait_ready("first", answers(addresses[0]), within_s=10)
            await supervisor.wait_ready("second", answers(addresses[1]), within_s=10)
            is_up.set()
            await is_stopping.wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(scope())
        await is_up.wait()
        task.cancel()
        await wait_until(lambda: "stopping" in story(supervisor), what="the cleanup to begin")
        task.cancel()

    assert task.cancelled()
    assert not supervisor.is_running("first")
    assert not supervisor.is_running("second")
    assert [event.process for event in supervisor.events if event.event == "stopping"] == ["second", "first"]
