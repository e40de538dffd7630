"""A host for a server whose processes leave its group: whatever is done to the server is done to all of them.

Promises: `kill`, `pause`, `resume` and `stop` reach every process that the server started, in whatever session; after
`kill` and `stop` none of them is left, so that the next start finds its files unused.

Does not: run anything itself; it is a `ProcessHost` around another one. Where the server runs under no keeper of ours
(in a container, which ends as a whole) it adds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from harness.environment.concurrency import shielded
from harness.environment.host import ProcessHost
from harness.environment.probes import Probe
from harness.environment.processes import keeper
from harness.environment.processes.freezing import wait_frozen
from harness.environment.processes.supervised import Command
from harness.environment.processes.supervisor import KILL_WITHIN_S
from harness.errors import EnvironmentFailedError


class FamilyHost:
    """The host of one server with children of its own."""

    def __init__(self, host: ProcessHost) -> None:
        """Run nothing yet. host: what really runs the server."""
        self._host = host
        self._pids: dict[str, int] = {}

    def is_running(self, name: str) -> bool:
        """Whether it runs now."""
        return self._host.is_running(name)

    def log_tail(self, name: str) -> str:
        """The last lines of its log since its last start."""
        return self._host.log_tail(name)

    async def start(self, command: Command) -> int:
        """Start what is not running; returns its pid without waiting for anything."""
        self._pids[command.name] = await self._host.start(command)
        return self._pids[command.name]

    async def wait_ready(self, name: str, probe: Probe, *, within_s: float) -> None:
        """Wait until the probe returns None."""
        await self._host.wait_ready(name, probe, within_s=within_s)

    async def kill(self, name: str) -> None:
        """SIGKILL it and everything it started, and wait for their end."""
        async with self._ending(name):
            self._freeze(name)
            await self._host.kill(name)

    async def pause(self, name: str) -> None:
        """Stop it and everything it started in its tracks; their connections stay open and silent."""
        self._freeze(name)
        await self._host.pause(name)
        await wait_frozen(name, self._family(name))

    async def resume(self, name: str) -> None:
        """Let all of them go on."""
        await self._host.resume(name)
        for pid in self._family(name):
            _send(pid, signal.SIGCONT)

    async def stop(self, name: str, *, grace_s: float | None = None) -> bool:
        """Ask it to end; what is left when the grace is over is killed. Returns whether it ended within the grace."""
        async with self._ending(name):
            return await self._host.stop(name, grace_s=grace_s)

    async def close(self, *, grace_s: float) -> None:
        """End the families; the host around which this stands is closed by whoever owns it, at the same time."""
        for name in self._pids:
            if self._family(name):
                await self.stop(name, grace_s=grace_s)

    def _freeze(self, name: str) -> None:
        # Parents first, and once more: who is stopped starts nobody, so the second look finds what the first missed.
        for _ in range(2):
            for pid in self._family(name):
                _send(pid, signal.SIGSTOP)

    def _family(self, name: str) -> list[int]:
        pid = self._pids.get(name, 0)
        return keeper.descendants_of(pid) if self._host.is_running(name) and _is_keeper(pid) else []

    @asynccontextmanager
    async def _ending(self, name: str) -> AsyncIterator[None]:
        # Looked up before the end: afterwards nobody knows whose they were. A pidfd never hits a later process.
        family = [descriptor for pid in self._family(name) if (descriptor := _open(pid)) is not None]
        try:
            yield
        finally:
            are_gone = await shielded(asyncio.to_thread(_end_all, family))
            for descriptor in family:
                os.close(descriptor)
        if not are_gone:
            raise EnvironmentFailedError(
                f"processes of {name} still run {KILL_WITHIN_S:g} s after SIGKILL; they hang in the kernel, look at "
                "`ps` and `dmesg`"
            )


def _is_keeper(pid: int) -> bool:
    # A pid that some host made up, or one that means something else here, must never become a family to kill.
    try:
        return keeper.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _end_all(family: list[int]) -> bool:
    deadline_s = time.monotonic() + KILL_WITHIN_S
    poller = select.poll()
    for descriptor in family:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poller.register(descriptor, select.POLLIN)
    left = len(family)
    while left and (wait_s := deadline_s - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(wait_s * 1000):
            poller.unregister(descriptor)
            left -= 1
    return left == 0


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
