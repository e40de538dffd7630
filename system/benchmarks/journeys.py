"""What payments did for each order, counted in the spans it spooled: nothing else remembers that through SIGKILL.

Promises: every request to the provider and every delivery that a payments process began is counted, also of one that
was killed before it could end the span.

An order is known by its trace (P10), because a span that is still open has no attributes on disk.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from system.benchmarks.parts import BenchmarkError
from system.telemetry import spool

CHARGE = "POST /charges"
DELIVERY = "process orders.created"

_HEADER_BYTES = 64
_LENGTH = struct.Struct("<I")
_SLOT = struct.Struct("<QQ16s8s8sBB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Journeys:
    """How often, by trace."""

    calls: Counter[bytes]
    deliveries: Counter[bytes]


def read_journeys(directory: Path) -> Journeys:
    """Everything that the payments processes left in a spool."""
    counted: dict[str, Counter[bytes]] = {CHARGE: Counter(), DELIVERY: Counter()}
    files = sorted(directory.glob("payments-*.spans"))
    if not files:
        raise BenchmarkError(f"payments left no spans in {directory}")
    for file in files:
        seen: set[bytes] = set()
        for name, trace_id, span_id in (*_ended(file.read_bytes()), *_open(file.with_suffix(".open").read_bytes())):
            # A span that was just ending may stand in both files.
            if name in counted and span_id not in seen:
                seen.add(span_id)
                counted[name][trace_id] += 1
    return Journeys(calls=counted[CHARGE], deliveries=counted[DELIVERY])


def _ended(content: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    wanted = (CHARGE.encode(), DELIVERY.encode())
    at = 0
    is_first = True  # which says whose spans these are
    while at + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if not length or at + length > len(content):
            return
        frame = content[at : at + length]
        at += length
        # Most spans are others: looking for the name costs a fiftieth of decoding.
        if not is_first and any(name in frame for name in wanted):
            span = Span.FromString(frame)
            yield span.name, span.trace_id, span.span_id
        is_first = False


def _open(content: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    if content[: len(spool.MAGIC)] != spool.MAGIC:
        raise BenchmarkError(f"a spool of open spans begins with {content[: len(spool.MAGIC)]!r}, not {spool.MAGIC!r}")
    for slot in range(spool.SLOT_COUNT):
        at = _HEADER_BYTES + slot * spool.SLOT_BYTES
        seq, _, trace_id, span_id, _, _, length = _SLOT.unpack_from(content, at)
        if seq:
            at += _SLOT.size
            yield content[at : at + length].decode("utf-8", "replace"), trace_id, span_id
