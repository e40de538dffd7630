"""Spans on disk that outlive the process that made them. The two files of a boot are a public contract.

`<service>-<instance>.spans`: frames, each a little-endian uint32 length and so many bytes. The first frame is a
serialized `opentelemetry.proto.resource.v1.Resource`; every later one a serialized
`opentelemetry.proto.trace.v1.Span`, put there when the span ends. The last frames of a process that was killed stand
in the second file, in its tail; after an orderly end the tail is empty.

`<service>-<instance>.open`: which spans are open now, and the tail, mapped into memory. A header of 64 bytes:

    offset  0  8 bytes  magic  b"SPOPEN02"
    offset  8  uint64   started: spans started so far, which is the highest number given
    offset 16  uint64   ended: spans ended and kept
    offset 24  uint32   slot_count (4096)
    offset 28  uint32   slot_size (128)
    offset 32  uint64   moved: bytes of the first file that count; what lies behind them was not finished
    offset 40  uint64   length: bytes of all frames, those in the tail included
    offset 48  uint64   origin: how many bytes of frames there were before the first one in the tail
    offset 56  zeros

then `slot_count` slots:

    offset  0  uint64   seq, the span's number; 0 means that the slot is free
    offset  8  uint64   start, Unix time in ns
    offset 16  16 bytes trace id, big-endian as in OTLP
    offset 32  8 bytes  span id
    offset 40  8 bytes  parent span id, zeros if there is none
    offset 48  1 byte   kind, the number of OTLP's enum
    offset 49  1 byte   length of the name in bytes
    offset 50  up to 78 bytes of the name, UTF-8

then the tail to the end of the file. All frames are the first `moved` bytes of the first file and, if `length` is more
than that, the tail from `moved - origin` to `length - origin`.

Integers are little-endian. `seq` is written last when a slot is taken and cleared after `length` was raised by the
span's frame, so a process killed at any moment leaves each started span in a frame, in a slot, or (between two
instructions) in both: readers take the frame's word. `started` is raised after the slot is filled.

Promises: what is written survives SIGKILL, because it is in the page cache. A full disk costs the spans that find no
room in the tail, which the caller counts, and not the process: what is mapped has its place on disk from the start.
Does not survive a power cut: nothing is fsynced. With more than 4096 spans open at once, the surplus is only counted.
Belongs to one thread.

Why a tail: a write(2) for each span costs 1.2 µs, and so does half of it the first touch of a new page of a growing
file that is mapped (4 to 10 µs a page on ext4, 1.7 on tmpfs); a page that is moved with 15 others costs 1 µs.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from functools import lru_cache
from pathlib import Path

from system.errors import StartError

log = logging.getLogger(__name__)

MAGIC = b"SPOPEN02"
SLOT_COUNT = 4096
SLOT_BYTES = 128
NAME_MAX_BYTES = 78
TAIL_BYTES = 64 * 1024
"""Some 180 spans. To move them holds up the event loop for 0.02 ms."""
NO_SLOT = -1

_HEADER = struct.Struct("<8sQQIIQQQ8x")
_FRAME = struct.Struct("<I")
_LENGTH_BYTES = _FRAME.size
# Everything of a slot but its seq, which is written last.
_SLOT = struct.Struct(f"<Q16s8s8s{2 + NAME_MAX_BYTES}s")
_TAIL_AT = _HEADER.size + SLOT_COUNT * SLOT_BYTES
# The numbers of the second file are seen through an array of uint64, which costs half of packing one.
_NUMBER_BYTES = 8
_STARTED, _ENDED, _MOVED, _LENGTH, _ORIGIN = 1, 2, 4, 5, 6
_FIRST_SEQ = _HEADER.size // _NUMBER_BYTES
_NAMES_MAX = 256
_NO_SUPPORT = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class SpoolError(StartError):
    """The spool's files cannot be made."""


class SpanSpool:
    """The two files of one boot."""

    def __init__(self, directory: Path, *, service: str, instance: str, resource: bytes) -> None:
        stem = f"{service}-{instance}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._open = _mapped(directory / f"{stem}.open", _TAIL_AT + TAIL_BYTES)
            self._fd = _new(directory / f"{stem}.spans")
        except OSError as error:
            raise SpoolError(f"cannot keep spans in {directory}: {error.strerror}; set SPAN_SPOOL_DIR") from None
        _HEADER.pack_into(self._open, 0, MAGIC, 0, 0, SLOT_COUNT, SLOT_BYTES, 0, 0, 0)
        self._numbers = memoryview(self._open).cast("Q")
        self._free = [_FIRST_SEQ + slot * SLOT_BYTES // _NUMBER_BYTES for slot in reversed(range(SLOT_COUNT))]
        self._at = _TAIL_AT
        self._end = _TAIL_AT + TAIL_BYTES
        self._is_complaining = False
        self.ended(NO_SLOT, resource)
        self._numbers[_ENDED] = 0  # that was no span

    def started(self, seq: int, start_ns: int, trace_id: bytes, span_id: bytes, parent_id: bytes, label: bytes) -> int:
        """Note that a span began; returns the slot to give back to `ended`.

        parent_id: zeros for a root. label: as `slot_label` makes it.
        """
        slot = NO_SLOT
        if self._free:
            slot = self._free.pop()
            after_seq = (slot + 1) * _NUMBER_BYTES
            _SLOT.pack_into(self._open, after_seq, start_ns, trace_id, span_id, parent_id, label)
            self._numbers[slot] = seq
        self._numbers[_STARTED] = seq
        return slot

    def ended(self, slot: int, span: bytes) -> bool:
        """Keep an ended span and free its slot; False, with the span still in its slot, if there is no room for it."""
        numbers, size = self._numbers, len(span)
        begin = self._at + _LENGTH_BYTES
        end = begin + size
        if end > self._end:
            if not self._has_moved_tail():
                return False
            begin = self._at + _LENGTH_BYTES
            end = begin + size
        if end <= self._end:
            _FRAME.pack_into(self._open, self._at, size)
            self._open[begin:end] = span
            numbers[_LENGTH] += _LENGTH_BYTES + size
            self._at = end
        elif not self._has_moved(_FRAME.pack(size) + span):
            return False
        if slot != NO_SLOT:
            numbers[slot] = 0
            self._free.append(slot)
        numbers[_ENDED] += 1
        return True

    def close(self) -> None:
        """Close both files; they stay on disk."""
        self._has_moved_tail()
        self._numbers.release()
        self._open.close()
        os.close(self._fd)

    def _has_moved_tail(self) -> bool:
        """Whether the first file has all frames now and the tail is empty; if not, everything is as it was."""
        return self._has_moved(self._open[_TAIL_AT : self._at])

    def _has_moved(self, frames: bytes) -> bool:
        """Whether the first file has these frames now, which are those of the tail or too large for it."""
        numbers = self._numbers
        at = numbers[_MOVED]
        try:
            _write(self._fd, frames, at)
        except OSError as error:
            if not self._is_complaining:
                self._is_complaining = True
                log.warning("spans cannot be spooled and are only counted until that is over: %s", error.strerror)
            return False
        if self._is_complaining:
            self._is_complaining = False
            log.info("spans are spooled again")
        # From here on nothing of the tail is read, so that the other numbers may follow.
        numbers[_MOVED] = at + len(frames)
        numbers[_LENGTH] = numbers[_ORIGIN] = at + len(frames)
        self._at = _TAIL_AT
        return True


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A new file of zeros that has its place on disk: writing to a mapped page that has none would end the process."""
    fd = _new(path)
    try:
        _take_place(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _new(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def _take_place(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in _NO_SUPPORT:
                raise
        else:
            return
    _write(fd, bytes(size), 0)


def _write(fd: int, content: bytes, at: int) -> None:
    if os.pwrite(fd, content, at) != len(content):  # a full disk takes a part
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@lru_cache(maxsize=_NAMES_MAX)
def slot_label(name: str, kind: int) -> bytes:
    """The end of a slot: kind, length of the name, and as much of it as fits, cut between two characters.

    kind: the number of OTLP's enum.
    """
    fitting = name.encode("utf-8", "replace")[:NAME_MAX_BYTES].decode(errors="ignore").encode()
    return bytes((kind, len(fitting))) + fitting
