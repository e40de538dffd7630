"""The keeper passes on what its server must hear, ends as it ended, and leaves nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.environment.processes import keeper
from harness.environment.tests.small_system import wait_until

SERVER = """
import os, signal, subprocess, time
child = subprocess.Popen(
    ["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
def told(number, _frame):
    os.write(1, signal.Signals(number).name.encode())  # print may be what is interrupted
    os._exit(7)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, told)
print(child.pid, os.getpid(), os.geteuid(), flush=True)
while True:
    time.sleep(600)
"""


class Kept:
    """A keeper with a server of a few lines, which has a child in a session of its own."""

    def __init__(self, user: str = keeper.OURSELVES, program: str = sys.executable) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, user, "/nonexistent", program, "-S", "-c", SERVER],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        words = [int(word) for word in self.process.stdout.readline().split()]
        self.child, self.server, self.user_id = words or (-1, -1, -1)

    def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what was said after the first line."""
        said, errors = self.process.communicate(timeout=10)
        return self.process.returncode, said.strip(), errors.strip()


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is not dead with nobody who asks for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("sent", "heard"), [("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT"), ("SIGHUP", "SIGINT"), ("SIGQUIT", "SIGQUIT")]
)
def test_a_request_to_end_becomes_the_servers_own(sent: str, heard: str) -> None:
    """What the server leaves ends before the keeper does, whose exit code is the server's."""
    kept = Kept()

    kept.process.send_signal(signal.Signals[sent])

    assert kept.ended() == (7, heard, "")
    assert not is_alive(kept.child)


def test_a_server_that_is_killed_has_its_children_killed_and_the_keeper_says_so() -> None:
    """As the out-of-memory killer does it."""
    kept = Kept()

    os.kill(kept.server, signal.SIGKILL)

    assert kept.ended() == (-signal.SIGKILL, "", "")
    assert not is_alive(kept.child)


async def test_a_keeper_that_is_killed_takes_its_server_along() -> None:
    """The kernel sees to that; what the server had started is found by who looked before."""
    kept = Kept()
    assert set(keeper.descendants_of(kept.process.pid)) == {kept.server, kept.child}
    assert keeper.descendants_of(kept.process.pid)[0] == kept.server

    kept.process.kill()

    assert kept.ended()[0] == -signal.SIGKILL
    await wait_until(lambda: not is_alive(kept.server), what="the server's end")
    os.kill(kept.child, signal.SIGKILL)


async def test_continuing_the_keeper_continues_what_its_server_started() -> None:
    """A supervisor that resumes before it stops reaches the process group only."""
    kept = Kept()
    state = Path(f"/proc/{kept.child}/stat")
    os.kill(kept.child, signal.SIGSTOP)
    await wait_until(lambda: state.read_text().split()[2] == "T", what="the child to stand still")

    os.kill(kept.process.pid, signal.SIGCONT)

    await wait_until(lambda: state.read_text().split()[2] != "T", what="the child to go on")
    kept.process.terminate()
    assert kept.ended()[0] == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_as_root_the_server_is_somebody_else() -> None:
    """Not in name only: no group of root's is left."""
    finished = subprocess.run(
        [sys.executable, "-I", "-S", keeper.__file__, "nobody", "/nonexistent", "/bin/sh", "-c", "id -u; id -G"],
        check=True,
        capture_output=True,
        text=True,
    )

    assert "0" not in finished.stdout.split()


def test_what_cannot_be_run_is_said() -> None:
    """In the log, where the supervisor shows it."""
    assert Kept(program="/no/such/program").ended() == (
        127,
        "",
        "keeper: cannot run /no/such/program as -: [Errno 2] No such file or directory",
    )


def test_a_pid_file_of_a_dead_server_that_nobody_asked_for_is_removed(tmp_path: Path) -> None:
    """A zombie has its pid still, and PostgreSQL would take it for alive; one that lives keeps its file."""
    pid_file = tmp_path / "postmaster.pid"
    with subprocess.Popen(["true"]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        for pid, is_removed in ((os.getpid(), False), (dead.pid, True)):
            pid_file.write_text(f"{pid}\n/data\n0\n5432\n\n127.0.0.1\n  5432  -1\nready\n")
            subprocess.run([sys.executable, "-I", "-S", keeper.__file__, "-", str(pid_file), "/bin/true"], check=True)
            assert pid_file.exists() != is_removed
