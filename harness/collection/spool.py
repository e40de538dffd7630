"""Span spools: what a process leaves on disk so that its spans outlive it.

An exporter's queue dies with its process. A process that wants to be judged after SIGKILL writes, under the directory
it was given, two files per boot (`<service>-<instance>`), both kept by the page cache when the process is killed:

`.spans`  frames of a little-endian uint32 length and that many bytes; the first frame is an OTLP `Resource`, each later
          one an OTLP `Span`, put there when the span ends.
`.open`   a header of 64 bytes (`SPOPEN02`, uint64 started, uint64 ended, uint32 slots, uint32 bytes per slot, uint64
          moved, uint64 length, uint64 origin), then one slot for each span that is open now: uint64 seq (0: free),
          uint64 start in ns, trace id (16 bytes), span id (8), parent span id (8, zero: none), kind (1), length of the
          name (1), the name in UTF-8. Then a tail of frames that were not moved to the first file yet: all frames are
          the first `moved` bytes of that, and the bytes of the tail from `moved - origin` to `length - origin`.

A simpler process writes every frame to `.spans` at once and ends its `.open` file, `SPOPEN01`, with the slots.

Spans are numbered from 1 when they start, so a reader knows exactly what it should have: `started` spans, each either
ended (in `.spans`) or open at death (in a slot). A torn last frame is left out, and then shows as missing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from harness.collection.spans import Origin, is_valid, kind_name, origin_of
from harness.records import Span, SpanId, TraceId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"SPOPEN02"
MAGIC_WITHOUT_TAIL = b"SPOPEN01"
_HEADER = struct.Struct("<8sQQIIQQQ")
_HEADER_BYTES = 64
_SLOT = struct.Struct("<QQ16s8s8sBB")
_LENGTH = struct.Struct("<I")
_FRAME_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One boot of one process, as its spool tells it.

    started: how many spans it began, None when the `.open` file is missing or torn.
    ended: as they were spooled. open: as rows, for a slot is all there is of them. spoilt: frames that are no spans.
    """

    origin: Origin
    started: int | None
    ended: tuple[trace_pb2.Span, ...]
    open: tuple[Span, ...]
    spoilt: int = 0


def read_boots(directory: Path) -> Iterator[Boot]:
    """Yield every boot that left a spool in the directory, in the order of file names."""
    for path in sorted(directory.glob("*.spans")):
        table = _Table.read(path.with_suffix(".open"))
        frames = _frames(table.completed(path.read_bytes()))
        first = next(frames, None)
        if first is None:
            continue
        ended = []
        spoilt = 0
        try:
            origin = origin_of(Resource.FromString(first))
        except DecodeError:
            origin, spoilt = Origin(service=path.stem, instance=path.stem), 1
        for frame in frames:
            span = _span(frame)
            if span is None:
                spoilt += 1
            else:
                ended.append(span)
        still_open = tuple(sorted(table.open(origin), key=lambda span: span.seq or 0))
        yield Boot(origin=origin, started=table.started, ended=tuple(ended), open=still_open, spoilt=spoilt)


def _span(frame: bytes) -> trace_pb2.Span | None:
    try:
        span = trace_pb2.Span.FromString(frame)
    except DecodeError:
        return None
    return span if is_valid(span) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """An `.open` file. started: None when the file is missing or torn, and then there is nothing in it."""

    content: bytes = b""
    started: int | None = None
    slots: int = 0
    slot_bytes: int = 0
    moved: int | None = None
    tail: bytes = b""

    @classmethod
    def read(cls, path: Path) -> _Table:
        content = path.read_bytes() if path.is_file() else b""
        if len(content) < _HEADER_BYTES:
            return cls()
        magic, started, _ended, slots, slot_bytes, moved, length, origin = _HEADER.unpack_from(content)
        tail_at = _HEADER_BYTES + slots * slot_bytes
        if magic not in (MAGIC, MAGIC_WITHOUT_TAIL) or slot_bytes < _SLOT.size or len(content) < tail_at:
            return cls()
        if magic == MAGIC_WITHOUT_TAIL:
            return cls(content=content, started=started, slots=slots, slot_bytes=slot_bytes)
        tail = content[tail_at:][max(moved - origin, 0) : max(length - origin, 0)] if length > moved else b""
        return cls(content=content, started=started, slots=slots, slot_bytes=slot_bytes, moved=moved, tail=tail)

    def completed(self, spans: bytes) -> bytes:
        """All frames, given what the `.spans` file holds."""
        if self.moved is None or len(spans) < self.moved:  # the latter: somebody cut it
            return spans
        return spans[: self.moved] + self.tail

    def open(self, origin: Origin) -> Iterator[Span]:
        """The spans that are open."""
        for number in range(self.slots):
            span = _slot(self.content, _HEADER_BYTES + number * self.slot_bytes, origin)
            if span is not None:
                yield span


def _slot(content: bytes, offset: int, origin: Origin) -> Span | None:
    seq, began_ns, trace_id, span_id, parent, kind, name_bytes = _SLOT.unpack_from(content, offset)
    if seq == 0:
        return None
    name_at = offset + _SLOT.size
    return Span(
        trace_id=TraceId(trace_id.hex()),
        span_id=SpanId(int.from_bytes(span_id, "big")),
        parent_span_id=SpanId(int.from_bytes(parent, "big")) if any(parent) else None,
        service=origin.service,
        instance=origin.instance,
        seq=seq,
        name=content[name_at : name_at + name_bytes].decode("utf-8", "replace"),
        kind=kind_name(kind),
        began_ns=began_ns,
        ended_ns=None,
        status="unset",
        key=None,
        attributes="{}",
    )


def _frames(content: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, offset)
        offset += _LENGTH.size
        if length > _FRAME_BYTES_MAX or offset + length > len(content):
            return
        yield content[offset : offset + length]
        offset += length
