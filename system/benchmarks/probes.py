"""What else goes on while a benchmark runs: how long the disk keeps an fsync, and who has the CPU."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PROBE_EVERY_S = 0.1
"""One small fsync ten times a second: too little to be felt by anybody, enough to see every stall that matters."""

STALL_MS = 50.0
"""An fsync that took longer is a stall: more than the whole of an order's settling may take."""

_NS = 1_000_000_000
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsync:
    """One fsync of the probe. began_ns: Unix time."""

    began_ns: int
    took_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What the probe saw. stalls_ns: from when to when a stall may have lasted, the unseen time before it included."""

    fsyncs: int
    p50_ms: float
    longest_ms: float
    stalls_ns: tuple[tuple[int, int], ...]


class FsyncProbe:
    """A thread that writes a byte and syncs it, again and again, in the directory of whom it watches."""

    def __init__(self, directory: Path) -> None:
        self._fsyncs: list[Fsync] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(directory / "fsync-probe",), name="fsync probe")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def seen(self, since_ns: int, until_ns: int) -> Disk:
        """What it saw between two Unix times; the thread must have ended."""
        fsyncs = [
            each for each in self._fsyncs if each.began_ns + each.took_ns >= since_ns and each.began_ns < until_ns
        ]
        took_ns = sorted(each.took_ns for each in fsyncs)
        unseen_ns = int(PROBE_EVERY_S * _NS)
        return Disk(
            fsyncs=len(fsyncs),
            p50_ms=took_ns[len(took_ns) // 2] / _NS_PER_MS if took_ns else 0.0,
            longest_ms=took_ns[-1] / _NS_PER_MS if took_ns else 0.0,
            stalls_ns=tuple(
                (each.began_ns - unseen_ns, each.began_ns + each.took_ns)
                for each in fsyncs
                if each.took_ns > STALL_MS * _NS_PER_MS
            ),
        )

    def _run(self, file: Path) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while not self._is_over.wait(PROBE_EVERY_S):
                began_ns = time.time_ns()
                os.pwrite(descriptor, b"x", 0)
                os.fsync(descriptor)
                self._fsyncs.append(Fsync(began_ns=began_ns, took_ns=time.time_ns() - began_ns))
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCpu:
    """What the whole machine did, in seconds of one core, since some moment.

    busy_s: whoever it was. stolen_s: what the hypervisor gave to others.
    """

    busy_s: float
    stolen_s: float


class MachineProbe:
    """Watches the CPUs of the whole machine from when it is made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._idle_s, self._stolen_s = _idle_and_stolen_s()

    def so_far(self) -> MachineCpu:
        """What was done since."""
        idle_s, stolen_s = _idle_and_stolen_s()
        stolen_s -= self._stolen_s
        # Linux measures how long a core idles, but only samples on a tick what else it does, and so misses much of the
        # work that a timer begins: 1.40 cores were said to be busy when our own processes alone had 1.46.
        whole_s = (time.monotonic() - self._began_s) * (psutil.cpu_count() or 1)
        return MachineCpu(busy_s=whole_s - (idle_s - self._idle_s) - stolen_s, stolen_s=stolen_s)


def _idle_and_stolen_s() -> tuple[float, float]:
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0), getattr(times, "steal", 0.0)
