"""Spans on disk that outlive the process that made them. The two files of a boot are a public contract.

`<service>-<instance>.spans`: frames, each a little-endian uint32 length and so many bytes. The first frame is a
serialized `opentelemetry.proto.resource.v1.Resource`; every later one a serialized
`opentelemetry.proto.trace.v1.Span`, appended with one write(2) when the span ends. After a crash the last frame may
be cut short; nothing before it is.

`<service>-<instance>.open`: which spans are open now, mapped into memory. A header of 64 bytes:

    offset  0  8 bytes  magic  b"SPOPEN01"
    offset  8  uint64   started: spans started so far, which is the highest number given
    offset 16  uint64   ended: spans ended and written to the first file
    offset 24  uint32   slot_count (4096)
    offset 28  uint32   slot_size (128)
    offset 32  zeros

then `slot_count` slots:

    offset  0  uint64   seq, the span's number; 0 means that the slot is free
    offset  8  uint64   start, Unix time in ns
    offset 16  16 bytes trace id, big-endian as in OTLP
    offset 32  8 bytes  span id
    offset 40  8 bytes  parent span id, zeros if there is none
    offset 48  1 byte   kind, the number of OTLP's enum
    offset 49  1 byte   length of the name in bytes
    offset 50  up to 78 bytes of the name, UTF-8

Integers are little-endian. `seq` is written last when a slot is taken and cleared after the span is in the first
file, so a process killed at any moment leaves each started span in the first file, in a slot, or (between two
instructions) in both: readers take the first file's word. `started` is raised after the slot is filled.

Promises: what is written survives SIGKILL, because it is in the page cache. Does not survive a power cut: nothing is
fsynced. With more than 4096 spans open at once, the surplus is only counted. Belongs to one thread.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from system.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

MAGIC = b"SPOPEN01"
SLOT_COUNT = 4096
SLOT_BYTES = 128
NAME_MAX_BYTES = 78
NO_SLOT = -1

_HEADER = struct.Struct("<8sQQII32x")
_FRAME = struct.Struct("<I")
# Everything of a slot but its seq, which is written last.
_SLOT = struct.Struct(f"<Q16s8s8sBB{NAME_MAX_BYTES}s")
_NUMBER = struct.Struct("<Q")
_STARTED_AT = 8
_ENDED_AT = 16
_NO_ID = bytes(8)
_NAMES_MAX = 256


class SpoolError(StartError):
    """The spool's files cannot be made."""


class SpanSpool:
    """The two files of one boot."""

    def __init__(self, directory: Path, *, service: str, instance: str, resource: bytes) -> None:
        stem = f"{service}-{instance}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            new = os.O_CREAT | os.O_EXCL
            self._spans_fd = os.open(directory / f"{stem}.spans", os.O_WRONLY | os.O_APPEND | new, 0o644)
            open_fd = os.open(directory / f"{stem}.open", os.O_RDWR | new, 0o644)
            os.ftruncate(open_fd, _HEADER.size + SLOT_COUNT * SLOT_BYTES)
            self._open = mmap.mmap(open_fd, 0)
            os.close(open_fd)
        except OSError as error:
            raise SpoolError(f"cannot keep spans in {directory}: {error.strerror}; set SPAN_SPOOL_DIR") from None
        _HEADER.pack_into(self._open, 0, MAGIC, 0, 0, SLOT_COUNT, SLOT_BYTES)
        self._free = list(range(SLOT_COUNT - 1, -1, -1))
        self._started = 0
        self._ended = 0
        self._length = 0
        self._is_broken = False
        self._append(resource)

    def started(
        self, *, seq: int, start_ns: int, context: SpanContext, parent: SpanContext | None, kind: int, name: str
    ) -> int:
        """Note that a span began; returns the slot to give back to `ended`. kind: the number of OTLP's enum."""
        slot = NO_SLOT
        if self._free:
            slot = self._free.pop()
            offset = _HEADER.size + slot * SLOT_BYTES
            name_length, name_bytes = _fitting(name)
            _SLOT.pack_into(
                self._open,
                offset + _NUMBER.size,
                start_ns,
                context.trace_id.to_bytes(16, "big"),
                context.span_id.to_bytes(8, "big"),
                _NO_ID if parent is None else parent.span_id.to_bytes(8, "big"),
                kind,
                name_length,
                name_bytes,
            )
            _NUMBER.pack_into(self._open, offset, seq)
        self._started = seq
        _NUMBER.pack_into(self._open, _STARTED_AT, self._started)
        return slot

    def ended(self, slot: int, span: bytes) -> bool:
        """Write an ended span and free its slot; False, with the span still in its slot, if it could not be written."""
        if not self._append(span):
            return False
        if slot != NO_SLOT:
            _NUMBER.pack_into(self._open, _HEADER.size + slot * SLOT_BYTES, 0)
            self._free.append(slot)
        self._ended += 1
        _NUMBER.pack_into(self._open, _ENDED_AT, self._ended)
        return True

    def close(self) -> None:
        """Close both files; they stay on disk."""
        self._open.close()
        os.close(self._spans_fd)

    def _append(self, content: bytes) -> bool:
        frame = _FRAME.pack(len(content)) + content
        try:
            written = os.write(self._spans_fd, frame)
        except OSError as error:
            self._complain(error.strerror)
            return False
        if written != len(frame):
            # A full disk takes a part: cut it off, or every later frame would be misread.
            os.ftruncate(self._spans_fd, self._length)
            self._complain("the disk took a part of it only")
            return False
        self._length += written
        return True

    def _complain(self, reason: str | None) -> None:
        if not self._is_broken:
            self._is_broken = True
            log.error("a span could not be spooled (%s); later failures are only counted", reason)


@lru_cache(maxsize=_NAMES_MAX)
def _fitting(name: str) -> tuple[int, bytes]:
    """As much of a name as a slot holds, cut between two characters, and its length."""
    fitting = name.encode("utf-8", "replace")[:NAME_MAX_BYTES].decode(errors="ignore").encode()
    return len(fitting), fitting
