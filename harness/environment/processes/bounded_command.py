"""Runs a command to its end within a deadline and keeps the end of what it said.

Promises: it and everything it started in its process group is gone when this returns or raises, also on cancellation.

Does not: judge the exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.environment.concurrency import shielded
from harness.environment.processes.exit_watch import ExitWatch

OUTPUT_BYTES_MAX = 16 * 1024
KILL_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended. exit_code: None when the deadline came first. output: its last words, both streams."""

    exit_code: int | None
    output: str

    def tail(self, lines: int = 12) -> str:
        """The last lines of its output, indented."""
        kept = [line for line in self.output.splitlines() if line.strip()][-lines:]
        return "\n".join(f"  {line}" for line in kept) or "  (it wrote nothing)"


async def run_bounded(
    argv: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    within_s: float,
    directory: Path | None = None,
    every_s: float | None = None,
    on_wait: Callable[[float], None] = lambda _elapsed_s: None,
) -> Finished:
    """Run it; on_wait is called every `every_s` seconds with the seconds elapsed.

    Raises OSError when it cannot start.
    """
    began_s = time.monotonic()
    # A file rather than a pipe: nobody has to read while it runs, and a grandchild cannot hold the end open.
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(  # noqa: ASYNC220, S603 - starting takes 2 ms; callers pass fixed commands, no shell
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
        )
        watch = ExitWatch(child)
        try:
            while watch.exit_code is None:
                left_s = within_s - (time.monotonic() - began_s)
                if left_s <= 0:
                    break
                if await watch.wait(left_s if every_s is None else min(left_s, every_s)) is None:
                    on_wait(time.monotonic() - began_s)
            exit_code = watch.exit_code
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            await shielded(watch.wait(KILL_WITHIN_S))
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - OUTPUT_BYTES_MAX))
        return Finished(exit_code=exit_code, output=output.read().decode("utf-8", "replace"))
