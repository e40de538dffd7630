"""The processes of a benchmark and their scratch directory.

Promises: leaving `Parts` ends every process it started and removes the directory, and so does SIGKILL of the benchmark
(`guardian`); a part that ends by itself, or is not ready in time, is an error that shows the end of its log; one that
was killed can be started again as what it was: name, command, environment and log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

import system

READY_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
GUARDIAN_WITHIN_S = 30.0
LOOK_EVERY_S = 0.02
LOG_TAIL_LINES = 15
FEW_CORES = 2

LOOPBACK = "127.0.0.1"

_GUARDIAN = Path(__file__).with_name("guardian.py")
_ROOT = Path(system.__file__).resolve().parents[1]


class BenchmarkError(Exception):
    """A part did not do its work; the message says which, and what its log ends with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a process is started. is_heard: its standard output is a pipe for us. user: who it runs as, None for us.

    cores: those it may run on, none for all.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    is_heard: bool
    user: str | None
    cores: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A process that was started. log: everything it said, and those before it of the same name."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    recipe: Recipe

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def cpu_s(self) -> float:
        """CPU time of all its threads so far, the system's share included."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def failed(self, what: str) -> BenchmarkError:
        """The error that says what went wrong, with the end of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return BenchmarkError("\n  ".join([f"{self.name} {what}; its log ends with:", *(lines or ["(nothing)"])]))


class Parts:
    """Everything that was started, from `with` until its end. directory: theirs, empty at first.

    alone: the part that has the first of two cores to itself, while the others share the second; None, or another
    number of cores: everybody runs where the kernel likes.
    """

    def __init__(self, *, alone: str | None = None) -> None:
        self._alone = alone
        self.directory = Path(tempfile.mkdtemp(prefix="stormproof-benchmark-"))
        self._started: dict[str, Part] = {}
        try:
            self._guardian = subprocess.Popen(  # noqa: S603 - our own command, no shell
                (sys.executable, "-I", str(_GUARDIAN), str(self.directory)),
                stdin=subprocess.PIPE,
                process_group=0,  # what kills our group shall not kill it
            )
        except BaseException:
            self.directory.rmdir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End everything: the guardian's way is the only one, so it is tried each time."""
        assert self._guardian.stdin is not None  # noqa: S101 - it is a pipe, as asked
        self._guardian.stdin.close()
        code = self._guardian.wait(GUARDIAN_WITHIN_S)
        for part in self._started.values():
            part.process.wait()
            if part.process.stdout is not None:
                part.process.stdout.close()
        if code:
            raise BenchmarkError(f"{self.directory} could not be removed; remove it by hand")

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        is_heard: bool = False,
        user: str | None = None,
    ) -> Part:
        """Start one process. is_heard: its standard output is a pipe for us instead of part of its log."""
        recipe = Recipe(
            command=tuple(command),
            environment=environment or {},
            is_heard=is_heard,
            user=user,
            cores=self._cores_of(name),
        )
        return self._start(name, recipe)

    def start_again(self, part: Part) -> Part:
        """Start a part that has ended once more."""
        return self._start(part.name, part.recipe)

    def _start(self, name: str, recipe: Recipe) -> Part:
        log = self.directory / f"{name}.log"
        with log.open("ab") as said, _on(recipe.cores):
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                recipe.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if recipe.is_heard else said,
                stderr=said,
                text=True,
                cwd=self.directory,
                # Nothing of the caller's own settings: a benchmark is to be the same everywhere.
                env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(_ROOT), **recipe.environment},
                process_group=self._guardian.pid,
                user=recipe.user,
            )
        part = Part(name=name, process=process, log=log, recipe=recipe)
        self._started[name] = part
        return part

    def _cores_of(self, name: str) -> frozenset[int]:
        cores = usable_cores()
        if self._alone is None or len(cores) != FEW_CORES:
            return frozenset()
        return frozenset(cores[:1] if name == self._alone else cores[1:])

    def check(self) -> None:
        """Raise BenchmarkError when a part has ended that should run."""
        for part in self._started.values():
            code = part.process.poll()
            if code:
                raise part.failed(f"ended with code {code}")

    def wait(self, part: Part, is_so: Callable[[], bool], *, what: str, within_s: float = READY_WITHIN_S) -> None:
        """Return when a part has come to something; raises BenchmarkError when it ended or took too long."""
        deadline_s = time.monotonic() + within_s
        while not is_so():
            if not part.is_running:
                raise part.failed(f"ended with code {part.process.returncode} before it was {what}")
            if time.monotonic() > deadline_s:
                raise part.failed(f"was not {what} within {within_s:g} s")
            time.sleep(LOOK_EVERY_S)

    def kill(self, part: Part) -> int:
        """End a part as a crash does; its exit code."""
        part.process.kill()
        return part.process.wait()

    def stop(self, part: Part, number: signal.Signals = signal.SIGTERM) -> bool:
        """Ask a part to end, and wait; False when it had to be killed or ended badly."""
        part.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return part.process.wait(STOP_WITHIN_S) == 0
        self.kill(part)
        return False


def usable_cores() -> list[int]:
    """The cores that we may run on, where that can be told and chosen; else as many numbers as there are cores."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def _on(cores: frozenset[int]) -> Iterator[None]:
    """Have what this thread starts within the scope run on these cores from its first instruction on."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_ports(count: int) -> list[int]:
    """So many different ports nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]
