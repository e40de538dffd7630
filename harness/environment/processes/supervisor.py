"""The supervisor owns the processes of one run: it starts, watches, signals and ends them, and keeps the record.

Promises: whatever happens to a process becomes a `ProcessEvent` (times, pid, how it ended); an end that nobody asked
for is kept as an `UnexpectedExit` with the tail of its log; when the scope ends nothing it started is left running,
also when the scope was cancelled.

Does not: restart anything by itself, and does not survive the harness (the guardian does).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from harness.environment.concurrency import shielded, together
from harness.environment.probes import Probe
from harness.environment.processes.exit_watch import ExitWatch
from harness.environment.processes.freezing import wait_frozen
from harness.environment.processes.guardian import OWNER_VARIABLE
from harness.environment.processes.readiness import wait_until_ready
from harness.environment.processes.supervised import Command, SupervisedProcess, launch, log_tail
from harness.errors import EnvironmentFailedError
from harness.records import ProcessEvent

KILL_WITHIN_S = 5.0
"""SIGKILL takes milliseconds; a process that survives it this long hangs in the kernel."""

UNWIND_GRACE_S = 2.0
"""Stop grace of processes that nobody stopped before the scope ended: the run has failed or is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnexpectedExit:
    """A process ended although nobody had killed or stopped it."""

    process: str
    pid: int
    how: str
    at_ns: int
    log_tail: str


class Supervisor:
    """Owner of all processes of a run; an async context manager."""

    def __init__(self, *, owner_label: str, on_event: Callable[[ProcessEvent], None] | None = None) -> None:
        """owner_label: what every process carries so that the guardian finds it. on_event: called for each record."""
        self.owner_label = owner_label
        self._on_event = on_event
        self._processes: dict[str, SupervisedProcess] = {}
        self._events: list[ProcessEvent] = []
        self._unexpected_exits: list[UnexpectedExit] = []

    async def __aenter__(self) -> Self:
        """Nothing to set up."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End whatever still runs, last started first to be told; shielded from cancellation."""
        await shielded(self.close())

    @property
    def owner_variables(self) -> dict[str, str]:
        """The variable that makes a process part of this run."""
        return {OWNER_VARIABLE: self.owner_label}

    @property
    def events(self) -> tuple[ProcessEvent, ...]:
        """Everything that happened so far, in order."""
        return tuple(self._events)

    @property
    def unexpected_exits(self) -> tuple[UnexpectedExit, ...]:
        """All ends that nobody asked for, in order."""
        return tuple(self._unexpected_exits)

    @property
    def names(self) -> tuple[str, ...]:
        """Every process that was ever started, in order of its first start."""
        return tuple(self._processes)

    def record(self, event: ProcessEvent) -> None:
        """Put on record what happened to a process of the run that somebody else runs: a container."""
        self._events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def is_running(self, name: str) -> bool:
        """Whether this process runs now."""
        process = self._processes.get(name)
        return process is not None and process.is_running

    def pid(self, name: str) -> int:
        """Its pid. Raises EnvironmentFailedError when it does not run."""
        return self._running(name, "ask the pid of").pid

    def log_tail(self, name: str) -> str:
        """The last lines of its log since its last start."""
        return log_tail(self._known(name).command.log_path)

    async def start(self, command: Command) -> int:
        """Start a process that is not running; returns its pid without waiting for anything."""
        before = self._processes.get(command.name)
        if before is not None and before.is_running:
            raise EnvironmentFailedError(f"cannot start {command.name}: it runs already with pid {before.pid}")
        boot = 1 if before is None else before.boot + 1
        child = launch(command, boot=boot, label=self.owner_variables)
        process: SupervisedProcess

        def record_exit(_exit_code: int) -> None:
            self._record_exit(process)

        process = SupervisedProcess(command=command, boot=boot, child=child, watch=ExitWatch(child, record_exit))
        self._processes[command.name] = process
        self._record(process, "started", f"boot {boot}")
        return process.pid

    async def start_again(self, name: str) -> int:
        """Start a process that has ended, with the command it had."""
        return await self.start(self._known(name).command)

    async def wait_ready(self, name: str, probe: Probe, *, within_s: float) -> None:
        """Wait until the probe returns None. Fails at once, with the log's tail, when the process ends first."""
        process = self._known(name)
        await wait_until_ready(process, probe, within_s=within_s)
        self._record(process, "ready", f"boot {process.boot}")

    async def kill(self, name: str) -> None:
        """SIGKILL the process and its group, and wait for its end."""
        process = self._running(name, "kill")
        process.is_expected_to_end = True
        self._record(process, "killed", "SIGKILL")
        await self._kill(process)

    async def pause(self, name: str) -> None:
        """SIGSTOP the process and its group, and see them stop."""
        process = self._running(name, "pause")
        process.signal_group(signal.SIGSTOP)
        process.is_paused = True
        await wait_frozen(name, process.group)
        self._record(process, "paused", "SIGSTOP")

    async def resume(self, name: str) -> None:
        """SIGCONT the process and its group."""
        self._resume(self._running(name, "resume"))

    async def stop(self, name: str, *, grace_s: float | None = None) -> bool:
        """SIGTERM, then SIGKILL when the grace (the command's own by default) is over.

        Returns whether it ended within the grace; True as well when it had ended before. A paused one is resumed.
        """
        process = self._known(name)
        process.watch.look()
        if not process.is_running:
            return True
        grace_s = process.command.stop_grace_s if grace_s is None else grace_s
        process.is_expected_to_end = True
        self._record(process, "stopping", f"SIGTERM, {grace_s:g} s of grace")
        process.signal(signal.SIGTERM)
        if process.is_paused:
            self._resume(process)
        if await process.watch.wait(grace_s) is None:
            self._record(process, "killed", f"SIGKILL: still running {grace_s:g} s after SIGTERM")
            await self._kill(process)
            return False
        process.signal_group(signal.SIGKILL)  # what it started and left behind
        return True

    async def restart(self, name: str, *, grace_s: float | None = None) -> int:
        """Stop it when it runs, then start it with the same command; returns the new pid."""
        await self.stop(name, grace_s=grace_s)
        return await self.start_again(name)

    async def close(self, *, grace_s: float = UNWIND_GRACE_S) -> None:
        """End everything that still runs, all at once, asked in reverse order of their start."""
        await together(*(self.stop(name, grace_s=grace_s) for name in reversed(self._processes)))

    def _known(self, name: str) -> SupervisedProcess:
        process = self._processes.get(name)
        if process is None:
            raise EnvironmentFailedError(f"no process {name!r} was started; there are {sorted(self._processes)}")
        return process

    def _running(self, name: str, wish: str) -> SupervisedProcess:
        process = self._known(name)
        process.watch.look()  # who died a moment ago of itself was not killed by us
        if not process.is_running:
            raise EnvironmentFailedError(f"cannot {wish} {name}: it had ended with {process.how_it_ended}")
        return process

    async def _kill(self, process: SupervisedProcess) -> None:
        process.signal_group(signal.SIGKILL)
        if await process.watch.wait(KILL_WITHIN_S) is None:
            raise EnvironmentFailedError(
                f"{process.command.name} (pid {process.pid}) still runs {KILL_WITHIN_S:g} s after SIGKILL; "
                "it hangs in the kernel, look at `ps` and `dmesg`"
            )

    def _resume(self, process: SupervisedProcess) -> None:
        process.signal_group(signal.SIGCONT)
        process.is_paused = False
        self._record(process, "resumed", "SIGCONT")

    def _record_exit(self, process: SupervisedProcess) -> None:
        if process.is_expected_to_end:
            self._record(process, "exited", process.how_it_ended)
            return
        tail = log_tail(process.command.log_path)
        event = self._record(process, "exited", f"unexpected: {process.how_it_ended}; its log ends:\n{tail}")
        self._unexpected_exits.append(
            UnexpectedExit(
                process=event.process, pid=event.pid, how=process.how_it_ended, at_ns=event.at_ns, log_tail=tail
            )
        )

    def _record(self, process: SupervisedProcess, event: str, detail: str) -> ProcessEvent:
        row = ProcessEvent(
            process=process.command.name, pid=process.pid, event=event, at_ns=time.time_ns(), detail=detail
        )
        self.record(row)
        return row
