"""Nothing of a run outlives the harness, not even after SIGKILL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.environment.processes import guardian
from harness.environment.processes import ownership as ownership_module
from harness.environment.processes.ownership import Owner, Ownership, reap_stale
from harness.environment.tests.small_system import owned_by, scratch_directories, wait_until
from harness.errors import UsageError

HARNESS = """
import asyncio, sys
from pathlib import Path
from harness.environment.choice import BackendChoice
from harness.environment.opening import open_environment
from harness.environment.tests.small_system import small_topology

def tell(line):
    print(line, flush=True)

async def main():
    tell("begun")
    async with open_environment(
        BackendChoice(), small_topology(), run_id="killed", run_directory=Path(sys.argv[1]), seed=1, otlp_url="http://127.0.0.1:1",
        progress=tell, on_event=lambda event: tell(f"{event.process} {event.event}"),
    ) as environment:
        tell("inside")
        if sys.argv[2] == "stay":
            await asyncio.Event().wait()

asyncio.run(main())
"""

ORPHAN_MAKER = """
import os, subprocess, sys
from pathlib import Path
from harness.environment.processes.ownership import Ownership
ownership = Ownership.take("stale", temporary=Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "600"], env={**os.environ, "STORMPROOF_OWNER": ownership.label})
print(child.pid, ownership.guardian_pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("toxiproxy_binary", "nats_binary")
@pytest.mark.parametrize(
    ("moment", "wish"),
    [
        ("starting", "stay"),
        ("nats started", "stay"),
        ("toxiproxy ready", "stay"),
        ("payments started", "stay"),
        ("inside", "stay"),
        ("orders stopping", "end"),
    ],
)
async def test_sigkill_of_the_harness_leaves_no_process_and_no_scratch(
    temporary: Path, tmp_path: Path, moment: str, wish: str
) -> None:
    """Killed at any moment of its life, the harness leaves nothing that it started."""
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path / "run"), wish],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as harness:
        assert harness.stdout is not None
        seen = [harness.stdout.readline()]
        while not seen[-1].startswith(moment):
            assert seen[-1], f"the harness ended before {moment!r}: {''.join(seen)}"
            seen.append(harness.stdout.readline())
        harness.kill()
        harness.wait()

    await wait_until(lambda: not owned_by(harness.pid), what=f"no process labelled by {harness.pid}")
    assert list(temporary.iterdir()) == []


async def test_a_grandchild_in_another_session_is_found_by_its_label(ownership: Ownership) -> None:
    """Labels are inherited, so a daemon of a daemon is still the run's."""
    double_fork = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nelse:\n    os._exit(0)"
    subprocess.run(
        [sys.executable, "-S", "-c", double_fork],
        env={**os.environ, guardian.OWNER_VARIABLE: ownership.label},
        check=True,
    )
    assert [guardian.labels_of(pid) for pid in owned_by(os.getpid()) if pid != ownership.guardian_pid] == [
        {guardian.OWNER_VARIABLE: ownership.label}
    ]

    await ownership.release()

    assert owned_by(os.getpid()) == []


async def test_the_guardian_ignores_the_signals_of_a_terminal(ownership: Ownership) -> None:
    """It ends when its work is done, not when somebody presses Ctrl-C or a session closes."""
    await wait_until(
        lambda: guardian.GUARDIAN_VARIABLE in guardian.labels_of(ownership.guardian_pid), what="the guardian's start"
    )
    # The signals are ignored from its first line on; the mask is visible in /proc once that has run.
    status = Path(f"/proc/{ownership.guardian_pid}/status")
    wanted = 1 << (signal.SIGTERM - 1)
    if guardian.has_proc():
        await wait_until(
            lambda: int(status.read_text().split("SigIgn:")[1].split()[0], 16) & wanted != 0, what="SIGTERM ignored"
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(ownership.guardian_pid, number)

    assert guardian.start_time_of(ownership.guardian_pid) is not None


async def test_release_removes_the_scratch_directory_and_ends_the_guardian(temporary: Path) -> None:
    """When the command returns nothing is left."""
    ownership = Ownership.take("plain", temporary=temporary)
    (ownership.scratch_directory / "store" / "deep").mkdir(parents=True)
    (ownership.scratch_directory / "store" / "deep" / "file").write_text("x")

    await ownership.release()
    await ownership.release()

    assert guardian.start_time_of(ownership.guardian_pid) is None
    assert list(temporary.iterdir()) == []


async def test_release_cleans_up_itself_when_the_guardian_was_killed(temporary: Path) -> None:
    """The guardian is a second line; its death costs nothing while the harness lives."""
    ownership = Ownership.take("unguarded", temporary=temporary)
    child = subprocess.Popen(["sleep", "600"], env={**os.environ, guardian.OWNER_VARIABLE: ownership.label})
    os.kill(ownership.guardian_pid, signal.SIGKILL)

    await ownership.release()

    assert child.wait(5) == -signal.SIGKILL
    assert list(temporary.iterdir()) == []


async def test_a_guardian_that_is_slow_is_helped_and_not_replaced(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it ended first, SIGKILL of the harness in that moment would leave the directory."""
    ownership = Ownership.take("slow", temporary=temporary)
    monkeypatch.setattr(ownership_module, "GUARDIAN_EXIT_WITHIN_S", 0.1)
    lived: list[bool] = []
    remove = guardian.remove_scratch

    def look_and_remove(directory: Path) -> None:
        lived.append(guardian.start_time_of(ownership.guardian_pid) is not None)
        remove(directory)

    monkeypatch.setattr(guardian, "remove_scratch", look_and_remove)
    os.kill(ownership.guardian_pid, signal.SIGSTOP)

    await ownership.release()

    assert lived == [True]
    assert guardian.start_time_of(ownership.guardian_pid) is None
    assert scratch_directories(temporary) == []


@pytest.mark.alone
async def test_what_a_crash_of_harness_and_guardian_left_is_reaped_by_the_next_start(temporary: Path) -> None:
    """A later start removes what an earlier crash left, by label and marker."""
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as harness:
        assert harness.stdout is not None
        orphan, guardian_pid = (int(word) for word in harness.stdout.readline().split())
        assert reap_stale(temporary=temporary).processes == 0, "a living run is not stale"
        os.kill(guardian_pid, signal.SIGKILL)
        harness.kill()
        harness.wait()
    await wait_until(lambda: guardian.start_time_of(guardian_pid) is None, what="the guardian's death")

    reaped = reap_stale(temporary=temporary)

    assert (reaped.processes, reaped.directories) == (1, 1)
    assert guardian.start_time_of(orphan) is None
    assert scratch_directories(temporary) == []


def test_a_scratch_directory_of_somebody_alive_or_elsewhere_is_left_alone(temporary: Path) -> None:
    """Only our own leftovers: not a living run's, not another pid namespace's, not one without a marker."""
    started = guardian.start_time_of(os.getpid())
    assert started is not None
    namespace = str(Path("/proc/self/ns/pid").readlink()) if guardian.has_proc() else ""
    living = Owner(pid=os.getpid(), started=started, run_id="living").label
    dead = Owner(pid=os.getpid(), started="1", run_id="dead").label
    for name, marker in {
        "stormproof-living": {"owner": living, "namespace": namespace},
        "stormproof-container": {"owner": dead, "namespace": "pid:[1]"},
        "stormproof-strange": {"owner": "nonsense", "namespace": namespace},
    }.items():
        (temporary / name).mkdir()
        (temporary / name / guardian.MARKER).write_text(json.dumps(marker))
    (temporary / "stormproof-mine").mkdir()
    (temporary / "stormproof-mine" / "thesis.txt").write_text("years of work")

    reaped = reap_stale(temporary=temporary)

    assert reaped.directories == 0
    assert len(list(temporary.iterdir())) == 4


def test_a_directory_without_a_marker_is_removed_only_when_empty(temporary: Path) -> None:
    """A harness killed between making the directory and marking it leaves an empty one; anything else is not ours."""
    empty, full = temporary / "empty", temporary / "full"
    empty.mkdir()
    full.mkdir()
    (full / "file").write_text("x")

    guardian.remove_scratch(empty)
    guardian.remove_scratch(full)

    assert not empty.exists()
    assert full.exists()


def test_a_link_out_of_the_scratch_directory_is_not_followed(temporary: Path) -> None:
    """Removing must not reach what a process linked to."""
    scratch, precious = temporary / "scratch", temporary / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    scratch.mkdir()
    (scratch / guardian.MARKER).write_text("{}")
    (scratch / "link").symlink_to(precious)

    guardian.remove_scratch(scratch)

    assert not scratch.exists()
    assert (precious / "file").exists()


@pytest.mark.alone
def test_reaping_is_cheap(temporary: Path) -> None:
    """It stands in the start budget of 1.5 s."""
    reap_stale(temporary=temporary)
    began_s = time.perf_counter()
    reap_stale(temporary=temporary)

    assert time.perf_counter() - began_s < 0.1


def test_a_run_id_that_is_no_plain_word_is_wrong_use(temporary: Path) -> None:
    """It becomes part of a path and of a label."""
    with pytest.raises(UsageError, match="is not a plain word"):
        Ownership.take("../etc", temporary=temporary)


async def test_two_environments_of_one_process_with_one_run_id_do_not_end_each_other(temporary: Path) -> None:
    """The label carries a token of its own."""
    first, second = (Ownership.take("same", temporary=temporary) for _ in range(2))
    child = subprocess.Popen(["sleep", "600"], env={**os.environ, guardian.OWNER_VARIABLE: second.label})

    await first.release()
    assert child.poll() is None
    await second.release()

    assert await asyncio.to_thread(child.wait, 5) == -signal.SIGKILL
