"""What runs a part that is somebody's own: it can be asked and waited for, and nothing else is done to it.

Promises: whoever tries to start, stop, kill, pause or resume what is not ours gets one sentence, and nothing happens.
"""

from __future__ import annotations

import asyncio
import time

from harness.environment.probes import Probe
from harness.environment.processes.supervised import Command
from harness.errors import EnvironmentFailedError

ASK_EVERY_S = 0.05


class SomebodysHost:
    """Runs what is not ours. Implements `host.ProcessHost`."""

    def is_running(self, name: str) -> bool:  # noqa: ARG002 - as far as anybody told us
        """It runs: it was said to."""
        return True

    def log_tail(self, name: str) -> str:
        """Nothing."""
        return f"  ({name} is somebody's own: its log is theirs)"

    async def start(self, command: Command) -> int:
        """Refuse."""
        raise _not_ours("start", command.name)

    async def wait_ready(self, name: str, probe: Probe, *, within_s: float) -> None:
        """Wait until the probe returns None."""
        deadline_s = time.monotonic() + within_s
        while (seen := await probe()) is not None:
            if time.monotonic() > deadline_s:
                raise EnvironmentFailedError(
                    f"somebody's {name} does not serve us within {within_s:g} s: {seen}; "
                    "look whether it runs, and whether URL and credentials are right"
                )
            await asyncio.sleep(ASK_EVERY_S)

    async def kill(self, name: str) -> None:
        """Refuse."""
        raise _not_ours("kill", name)

    async def pause(self, name: str) -> None:
        """Refuse."""
        raise _not_ours("pause", name)

    async def resume(self, name: str) -> None:
        """Refuse."""
        raise _not_ours("resume", name)

    async def stop(self, name: str, *, grace_s: float | None = None) -> bool:  # noqa: ARG002 - refused whatever it is
        """Refuse."""
        raise _not_ours("stop", name)

    async def close(self, *, grace_s: float) -> None:
        """Leave everything as it is."""


def _not_ours(wish: str, name: str) -> EnvironmentFailedError:
    return EnvironmentFailedError(f"cannot {wish} {name}: it is somebody's own, and not the harness's to {wish}")
