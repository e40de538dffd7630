"""One container of a run, as `host` knows it: what it is made of, its process on this host, how it ended.

Promises: its end is noticed by the kernel's own sign, within milliseconds and without Docker, which may be gone.

Does not: ask Docker for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.environment.containers.docker_socket import ContainerState
from harness.environment.processes.guardian import OWNER_VARIABLE, labels_of
from harness.environment.processes.supervised import Command

LABEL_WITHIN_S = 2.0
LOOK_INTERVAL_S = 0.005
_SIGNALLED = 128
"""A program that a signal ended has an exit code of 128 and the signal's number, says Docker like a shell."""


class HostProcess:
    """A process of this host that is nobody's child here; must be made inside a running event loop."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is none."""
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._descriptor = os.pidfd_open(pid)
        self._loop.add_reader(self._descriptor, self._end)

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._ended.done()

    async def wait(self, within_s: float | None = None) -> None:
        """Return when it has ended, or when the time is over."""
        await asyncio.wait({self._ended}, timeout=within_s)

    async def carries(self, owner_label: str) -> bool:
        """Whether it has this label in its environment; a moment after its birth it may not have begun its program."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LABEL_WITHIN_S):
                while not self.has_ended:
                    if labels_of(self.pid).get(OWNER_VARIABLE) == owner_label:
                        return True
                    await self.wait(LOOK_INTERVAL_S)
        return False

    def kill(self) -> None:
        """SIGKILL, without Docker; as the first process of a container it takes all others along."""
        if self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def forget(self) -> None:
        """Stop watching it."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _end(self) -> None:
        self.forget()
        if not self._ended.done():
            self._ended.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a container is made of.

    user: `uid:gid`, numbers of this host. directory: of this host, seen under the same path, and writable. accounts: a
    file that stands for /etc/passwd, because initdb wants a name for whoever it runs as.
    """

    name: str
    image: str
    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str]
    user: str
    directory: Path
    accounts: Path
    working_directory: Path | None


@dataclass(slots=True, kw_only=True)
class Contained:
    """A container that was started, alive or not.

    told: done when its end is on record; its result says how it ended.
    """

    command: Command
    boot: int
    id: str
    pid: int
    process: HostProcess | None
    stop_signal: str
    told: asyncio.Future[str]
    is_expected_to_end: bool = False
    is_paused: bool = False
    life: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def is_running(self) -> bool:
        """Whether its first process has not ended."""
        return self.process is not None and not self.process.has_ended

    @property
    def end(self) -> asyncio.Future[str]:
        """Its end, once it is on record."""
        return self.told

    async def ended_within(self, within_s: float) -> bool:
        """Whether its first process has ended in time; its end is on record then."""
        if self.process is not None:
            await self.process.wait(within_s)
        if self.is_running:
            return False
        await self.wait_told()
        return True

    async def wait_told(self) -> str:
        """How it ended, once that is on record."""
        await asyncio.wait({self.told})  # unlike awaiting it, this leaves it alone when the caller is cancelled
        return self.told.result()

    @property
    def how_it_ended(self) -> str:
        """`exit code 0` or `signal SIGKILL`; `running` while that is not known."""
        return self.told.result() if self.told.done() else "running"


def words_of(state: ContainerState) -> str:
    """How a container ended, as the supervisor says it of a process."""
    memory = " (out of memory)" if state.is_out_of_memory else ""
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(state.exit_code - _SIGNALLED).name}{memory}"
    return f"exit code {state.exit_code}{memory}"
