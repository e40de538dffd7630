"""Tells when a child process has ended, without a thread and without a task.

Promises: exactly one exit code per child, within milliseconds of its end; the child is reaped.

Does not: start or signal the child. A pidfd where the kernel has one (Linux ≥ 5.3), else a timed look. asyncio's own
subprocesses are not used: before Python 3.12 each costs a thread, and a loop that closes first warns about them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable

LOOK_INTERVAL_S = 0.005


class ExitWatch:
    """Watches one child from birth to its end; must be made inside a running event loop."""

    def __init__(self, child: subprocess.Popen[bytes], on_exit: Callable[[int], None] | None = None) -> None:
        """on_exit: called once in the event loop with the exit code (negative: the signal's number)."""
        self._child = child
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        # Done with the exit code. To be waited for with asyncio.wait, which cancels nothing.
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._descriptor = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(child.pid)
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self.look)
        else:
            self._loop.call_later(LOOK_INTERVAL_S, self._look_again)

    @property
    def exit_code(self) -> int | None:
        """The exit code, None while the child runs."""
        return self.ended.result() if self.ended.done() else None

    async def wait(self, within_s: float | None = None) -> int | None:
        """The exit code once the child has ended; None when it has not within the given time."""
        await asyncio.wait({self.ended}, timeout=within_s)
        return self.exit_code

    def look(self) -> None:
        """Take note of an end that has happened but that the event loop has not come to yet."""
        exit_code = self._child.poll()
        if exit_code is None or self.ended.done():
            return
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        self.ended.set_result(exit_code)
        if self._on_exit is not None:
            self._on_exit(exit_code)

    def _look_again(self) -> None:
        self.look()
        if not self.ended.done():
            self._loop.call_later(LOOK_INTERVAL_S, self._look_again)
