"""A harness that is killed at a chosen moment, in a process and a temporary directory of its own.

Promises: whatever happens here, the harness that was started ends; what it leaves is counted, not removed, except by
the next start where the guardians were killed first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.benchmarks.leftovers import Left, left_of, suspect
from harness.benchmarks.victims import WAITING_TEST, Moment, Victim
from harness.environment.processes.guardian import (
    GUARDIAN_VARIABLE,
    OWNER_VARIABLE,
    labels_of,
    own_processes,
    start_time_of,
)
from harness.errors import EnvironmentFailedError

LIFE_WITHIN_S = 180.0
MOMENT_WITHIN_S = 90.0
LOOK_INTERVAL_S = 0.005
STAYS_S = 0.5
"""How long after it is ready a command that waits for a signal is still killed."""

OPEN_TO_ALL = 0o711
"""PostgreSQL, which root may not run, passes through the directory as another user."""

_VERDICTS = (0, 1, 2)
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill. had: what there was a moment before. gone_s: until nothing was left; None when something stayed.

    came_too_late: it had ended by itself before. left: what stayed. after_next_start: what was left of it once another
    run had started and ended; None where that was not tried.
    """

    moment: str
    came_too_late: bool
    had: Left
    gone_s: float | None
    left: Left
    after_next_start: Left | None = None


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none of them can hide. Linux alone."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this kernel does not let us adopt orphans")


def life_of(victim: Victim) -> float:
    """How many seconds it lives when nobody kills it; until it only waits, and a little more, when it would not end."""
    with _started(victim) as harness:
        ready = victim.ready
        wait_until(
            lambda: harness.process.poll() is not None or (ready is not None and ready in harness.said),
            LIFE_WITHIN_S,
            "its end" if ready is None else repr(ready),
        )
        ended = harness.process.returncode
        if ended is None:
            return harness.age_s + STAYS_S
        if ready is not None or ended not in _VERDICTS:
            raise EnvironmentFailedError(f"`{' '.join(victim.words)}` ended with {ended}: {harness.said[-2000:]}")
        return harness.age_s


def kill(victim: Victim, moment: Moment, number: signal.Signals, *, within_s: float, unguarded: bool = False) -> Kill:
    """Start it, kill it at this moment, and count what is left of it, until it is nothing or the time is over.

    unguarded: its guardians are killed first; then another one is started and ended, which has to clean up.
    """
    with _started(victim) as harness:
        harness.wait_for(moment)
        came_too_late = harness.process.poll() is not None
        looked_at = suspect(harness.process.pid, harness.label, harness.temporary)
        had = left_of(looked_at)
        if unguarded:
            _kill_guardians(harness.label)
        with contextlib.suppress(ProcessLookupError):
            harness.process.send_signal(number)
        killed_s = time.monotonic()
        harness.process.wait(LIFE_WITHIN_S)
        gone_s = None
        while True:
            _bury_orphans()
            left = left_of(looked_at, orphans_come_to=os.getpid())
            elapsed_s = time.monotonic() - killed_s
            if left.total == 0:
                gone_s = elapsed_s
            if gone_s is not None or elapsed_s > within_s:
                break
            time.sleep(LOOK_INTERVAL_S)
        after = None
        if unguarded:
            _start_and_end(harness)
            _bury_orphans()
            after = left_of(looked_at, orphans_come_to=os.getpid())
        return Kill(
            moment=str(moment),
            came_too_late=came_too_late,
            had=had,
            gone_s=gone_s,
            left=left,
            after_next_start=after,
        )


def wait_until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Wait for what nothing can be awaited for. Raises TimeoutError."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {within_s:g} s in vain for {what}")
        time.sleep(LOOK_INTERVAL_S)


class _Harness:
    """A victim that runs."""

    def __init__(self, words: tuple[str, ...], place: Path, temporary: Path) -> None:
        """place: for everything it writes, but for what lies in its temporary directory."""
        self.place = place
        self.temporary = temporary
        self._said = place / "said"
        self._began_s = time.monotonic()
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                words,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(temporary)},
                start_new_session=True,
            )
        started = start_time_of(self.process.pid)
        self.label = f"{self.process.pid}:" if started is None else f"{self.process.pid}:{started}:"

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began_s

    @property
    def said(self) -> str:
        """Its progress so far."""
        return self._said.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, moment: Moment) -> None:
        """Wait for the moment, or its end when that comes first."""
        reached: dict[str, Callable[[], bool]] = {
            "seconds": lambda: self.age_s >= moment.value,
            "line": lambda: self.said.count("\n") >= moment.value,
            "processes": lambda: len(list(_carrying(OWNER_VARIABLE, self.label))) >= moment.value,
        }
        is_reached = reached[moment.kind]
        wait_until(lambda: self.process.poll() is not None or is_reached(), MOMENT_WITHIN_S, str(moment))


@contextmanager
def _started(victim: Victim) -> Iterator[_Harness]:
    place = Path(tempfile.mkdtemp(prefix="leaks-"))
    try:
        place.chmod(OPEN_TO_ALL)
        temporary = place / "tmp"
        temporary.mkdir()
        temporary.chmod(OPEN_TO_ALL)
        words = victim.words
        if "pytest" in words:
            (place / "test_waits.py").write_text(WAITING_TEST, encoding="utf-8")
            words = (*words, str(place / "test_waits.py"), "--basetemp", str(place / "pytest"))
        else:
            words = (*words, "--runs-dir", str(place / "runs"))
        harness = _Harness(words, place, temporary)
        try:
            yield harness
        finally:
            harness.process.kill()
            harness.process.wait()
            # Whatever was counted is over: this directory is what the guardian itself is still working on at most.
            wait_until(lambda: not list(_carrying(GUARDIAN_VARIABLE, harness.label)), LIFE_WITHIN_S, "its guardian")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _start_and_end(harness: _Harness) -> None:
    words = (sys.executable, "-m", "harness", "up", "--runs-dir", str(harness.place / "next"))
    (harness.place / "next-place").mkdir()
    following = _Harness(words, harness.place / "next-place", harness.temporary)
    try:
        wait_until(lambda: "environment ready" in following.said, LIFE_WITHIN_S, "the next start")
        following.process.send_signal(signal.SIGINT)
        following.process.wait(LIFE_WITHIN_S)
    finally:
        following.process.kill()
        following.process.wait()


def _kill_guardians(label: str) -> None:
    for pid in _carrying(GUARDIAN_VARIABLE, label):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not list(_carrying(GUARDIAN_VARIABLE, label)), MOMENT_WITHIN_S, "the guardians' end")


def _carrying(variable: str, label: str) -> Iterator[int]:
    return (pid for pid in own_processes() if labels_of(pid).get(variable, "").startswith(label))


def _bury_orphans() -> None:
    # Adopted ones that have died; the harness itself has been waited for before.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
