"""Waiting until something that was started is ready, whoever hosts it.

Promises: returns when the probe is content; fails at once, with the log's tail, when it ends first, and after
`within_s` with the last thing that the probe saw. A probe that hangs does not outlast the end of what it asks:
somebody else may hold the port while the asked one has long died of that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from harness.environment.probes import Probe
from harness.environment.processes.supervised import Command, log_tail
from harness.errors import EnvironmentFailedError

READY_INTERVAL_S = 0.01


class Started(Protocol):
    """What was started: a process, or a container.

    end: done once it is known how it ended; nobody cancels it. how_it_ended: says so then.
    """

    @property
    def command(self) -> Command:
        """With which it was started."""

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""

    @property
    def end(self) -> asyncio.Future[Any]:
        """Its end."""

    @property
    def how_it_ended(self) -> str:
        """`exit code 0` or `signal SIGKILL`."""


async def wait_until_ready(started: Started, probe: Probe, *, within_s: float) -> None:
    """Wait until the probe returns None. Raises EnvironmentFailedError."""
    name, log_path = started.command.name, started.command.log_path
    deadline_s = time.monotonic() + within_s
    while True:
        seen = await _probe_or_end(probe, started.end)
        if not started.is_running:
            await asyncio.wait({started.end})
            what = f"{name} ended with {started.how_it_ended} before it was ready"
            break
        if seen is None:
            return
        if time.monotonic() > deadline_s:
            what = f"{name} was not ready within {within_s:g} s: {seen}"
            break
        await asyncio.wait({started.end}, timeout=READY_INTERVAL_S)
    raise EnvironmentFailedError(f"{what}; its log ({log_path}) ends:\n{log_tail(log_path)}")


async def _probe_or_end(probe: Probe, end: asyncio.Future[Any]) -> str | None:
    asking = asyncio.get_running_loop().create_task(_ask(probe))
    try:
        waits: set[asyncio.Future[Any]] = {asking, end}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asking.cancel()
        await asyncio.wait({asking})
    return asking.result() if not asking.cancelled() else "it ended"


async def _ask(probe: Probe) -> str | None:
    return await probe()
