"""Whether a stop has been carried out: SIGSTOP is sent in a moment, and obeyed by each thread when it gets to it.

Promises: after `wait_frozen` none of these processes executes another instruction of its own until SIGCONT. Does not:
send the signal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from harness.errors import EnvironmentFailedError

FROZEN_WITHIN_S = 5.0
"""A thread takes microseconds, and on a busy machine as long as it takes to get a processor."""
_LOOK_EVERY_S = 0.001
_RUNS_OR_CAN = frozenset("RS")
"""Running, or asleep in a way that a signal ends. Who waits for a disk ("D") is stopped before it goes on."""


async def wait_frozen(name: str, pids: Iterable[int]) -> None:
    """Wait until all threads of these are stopped or gone; where there is no /proc, for nothing.

    Raises EnvironmentFailedError after `FROZEN_WITHIN_S`.
    """
    left = list(pids)
    deadline_s = time.monotonic() + FROZEN_WITHIN_S
    while left := [pid for pid in left if not _is_frozen(pid)]:
        if time.monotonic() > deadline_s:
            raise EnvironmentFailedError(
                f"{name} still runs {FROZEN_WITHIN_S:g} s after SIGSTOP (pid {left[0]}); somebody else wakes it, or "
                "the machine is overloaded"
            )
        await asyncio.sleep(_LOOK_EVERY_S)


def _is_frozen(pid: int) -> bool:
    try:
        return not any(_state(thread) in _RUNS_OR_CAN for thread in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True


def _state(thread: Path) -> str:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""  # it has ended
