"""The recording: every operation as one line of the history, and the figures of the whole.

Promises: each operation that ended is one JSON line with the fields of `harness.records.Operation`; lines reach the
file with `flush`, in whole lines; the figures are exact, from every single operation, not from buckets.

Does not: flush by itself (its owner does, every `FLUSH_EVERY_S`), nor wait for the disk. Encoding an operation costs
1.2 µs (msgspec; the json module 9).
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

import msgspec

from harness.records import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from harness.records import Operation

FLUSH_EVERY_S = 0.1
FLUSH_AT_BYTES = 1024 * 1024


class Recording:
    """Counts operations and appends them to a history file, or only counts them; lives on one thread."""

    def __init__(self, path: Path | None = None) -> None:
        """Append to the file at `path`. Raises FileExistsError when it holds a history already."""
        self.begun = 0
        self.unanswered = 0
        self.latencies_ns = {outcome: array("q") for outcome in Outcome}
        self.begun_late_ns = array("q")
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._descriptor = None if path is None else _opened(path)

    def begin(self) -> None:
        """Count an operation that is about to be sent."""
        self.begun += 1

    def end(self, operation: Operation, gave_up_ns: int) -> None:
        """Keep an operation that has its outcome. gave_up_ns: now; counts as its end when it has none."""
        ended_ns = operation.ended_ns
        if ended_ns is None:
            self.unanswered += 1
            ended_ns = gave_up_ns
        self.latencies_ns[operation.outcome].append(ended_ns - operation.intended_ns)
        self.begun_late_ns.append(operation.began_ns - operation.intended_ns)
        if self._descriptor is not None:
            self._encoder.encode_into(operation, self._buffer, -1)
            self._buffer += b"\n"
            if len(self._buffer) >= FLUSH_AT_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hand every line to the operating system. On OSError (a full disk) what is left is kept."""
        if self._descriptor is None or not self._buffer:
            return
        lines, self._buffer = self._buffer, bytearray()
        written = 0
        try:
            with memoryview(lines) as left:
                while written < len(lines):
                    written += os.write(self._descriptor, left[written:])
        except OSError:
            self._buffer = lines[written:] + self._buffer
            raise

    def close(self) -> None:
        """Flush, and let go of the file; it stays."""
        try:
            self.flush()
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def count(self, outcome: Outcome) -> int:
        """How many operations ended so."""
        return len(self.latencies_ns[outcome])


def _opened(path: Path) -> int:
    # Appended, because the harness may hold the same file open; it must be empty, or two runs would mix in one history.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    if os.fstat(descriptor).st_size:
        os.close(descriptor)
        raise FileExistsError(f"{path} holds the history of another run")
    return descriptor
