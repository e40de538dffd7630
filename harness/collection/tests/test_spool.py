"""Spools written by hand, byte by byte, and read back."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from harness.collection.spool import read_boots
from harness.records import SpanId, TraceId

if TYPE_CHECKING:
    from pathlib import Path

TRACE = bytes(range(16))
RESOURCE = Resource(
    attributes=[
        KeyValue(key="service.name", value=AnyValue(string_value="payments")),
        KeyValue(key="service.instance.id", value=AnyValue(string_value="boot1")),
    ]
)


def otlp_span(number: int) -> OtlpSpan:
    """Make a numbered span about order o1."""
    return OtlpSpan(
        trace_id=TRACE,
        span_id=number.to_bytes(8, "big"),
        name="process",
        kind=OtlpSpan.SPAN_KIND_CONSUMER,
        start_time_unix_nano=10,
        end_time_unix_nano=20,
        attributes=[
            KeyValue(key="telemetry.seq", value=AnyValue(int_value=number)),
            KeyValue(key="order.id", value=AnyValue(string_value="o1")),
        ],
    )


def frames(*messages: bytes) -> bytes:
    """Frame messages as a spool does."""
    return b"".join(struct.pack("<I", len(message)) + message for message in messages)


def slot(number: int, name: str) -> bytes:
    """Make the slot of an open span."""
    octets = name.encode()
    packed = (
        struct.pack("<QQ16s8s8sBB", number, 11, TRACE, number.to_bytes(8, "big"), bytes(8), 5, len(octets)) + octets
    )
    return packed.ljust(128, b"\0")


def write(directory: Path, spans: bytes, *, started: int, slots: list[bytes]) -> None:
    """Write both files of one boot."""
    (directory / "payments-boot1.spans").write_bytes(spans)
    header = struct.pack("<8sQQII", b"SPOPEN01", started, 0, len(slots), 128).ljust(64, b"\0")
    (directory / "payments-boot1.open").write_bytes(header + b"".join(slots))


def test_ended_and_open_spans_of_a_killed_process_are_both_known(tmp_path: Path) -> None:
    """Two spans ended, the third was open when SIGKILL came."""
    spans = frames(RESOURCE.SerializeToString(), otlp_span(1).SerializeToString(), otlp_span(2).SerializeToString())
    write(tmp_path, spans, started=3, slots=[bytes(128), slot(3, "process")])

    (boot,) = read_boots(tmp_path)

    assert (boot.origin.service, boot.origin.instance, boot.started) == ("payments", "boot1", 3)
    assert [span.span_id for span in boot.ended] == [b"\0" * 7 + b"\1", b"\0" * 7 + b"\2"]
    (still_open,) = boot.open
    assert (still_open.seq, still_open.name, still_open.kind, still_open.ended_ns) == (3, "process", "consumer", None)
    assert (still_open.trace_id, still_open.span_id) == (TraceId(TRACE.hex()), SpanId(3))
    assert still_open.parent_span_id is None


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_frame_is_left_out_and_the_rest_is_read(tmp_path: Path, cut: int) -> None:
    """Wherever the write was torn, what came before it counts, and the missing one shows against `started`."""
    spans = frames(RESOURCE.SerializeToString(), otlp_span(1).SerializeToString(), otlp_span(2).SerializeToString())
    write(tmp_path, spans[:-cut], started=2, slots=[])

    (boot,) = read_boots(tmp_path)

    assert [span.span_id for span in boot.ended] == [b"\0" * 7 + b"\1"]
    assert boot.started == 2


def write_with_tail(directory: Path, moved: bytes, unfinished: bytes, tail: bytes, *, lead: int, rest: bytes) -> None:
    """Write both files of a boot that moves its frames to the first file now and then.

    lead: how many of the moved bytes still stand in the tail, before those that are not moved yet.
    """
    (directory / "payments-boot1.spans").write_bytes(moved + unfinished)
    numbers = (len(moved), len(moved) + len(tail), len(moved) - lead)
    header = struct.pack("<8sQQIIQQQ", b"SPOPEN02", 3, 2, 1, 128, *numbers).ljust(64, b"\0")
    lead_bytes = moved[len(moved) - lead :]
    (directory / "payments-boot1.open").write_bytes(header + slot(3, "process") + lead_bytes + tail + rest)


@pytest.mark.parametrize("lead", [0, 10])
@pytest.mark.parametrize("unfinished", [b"", b"half a frame"])
def test_frames_in_the_tail_of_a_killed_process_are_read_too(tmp_path: Path, unfinished: bytes, lead: int) -> None:
    """The second span was not moved yet; what stands behind the moved bytes, in either file, is not read."""
    moved = frames(RESOURCE.SerializeToString(), otlp_span(1).SerializeToString())
    tail = frames(otlp_span(2).SerializeToString())
    write_with_tail(tmp_path, moved, unfinished, tail, lead=lead, rest=frames(b"of an earlier round"))

    (boot,) = read_boots(tmp_path)

    assert [span.span_id for span in boot.ended] == [b"\0" * 7 + b"\1", b"\0" * 7 + b"\2"]
    assert [span.seq for span in boot.open] == [3]
    assert (boot.started, boot.spoilt) == (3, 0)


def test_a_process_killed_between_moving_and_saying_so_leaves_each_span_once(tmp_path: Path) -> None:
    """The moved bytes were raised, and the length not yet: nothing of the tail counts."""
    spans = frames(RESOURCE.SerializeToString(), otlp_span(1).SerializeToString())
    (tmp_path / "payments-boot1.spans").write_bytes(spans)
    header = struct.pack("<8sQQIIQQQ", b"SPOPEN02", 1, 1, 0, 128, len(spans), len(spans) - 5, 0).ljust(64, b"\0")
    (tmp_path / "payments-boot1.open").write_bytes(header + spans)

    (boot,) = read_boots(tmp_path)

    assert [span.span_id for span in boot.ended] == [b"\0" * 7 + b"\1"]


def test_a_boot_without_its_count_does_not_pretend_to_know_it(tmp_path: Path) -> None:
    """The `.open` file is missing: nobody can say how many spans there were."""
    write(tmp_path, frames(RESOURCE.SerializeToString()), started=0, slots=[])
    (tmp_path / "payments-boot1.open").unlink()

    (boot,) = read_boots(tmp_path)

    assert boot.started is None


def test_a_spool_that_was_never_begun_is_no_boot(tmp_path: Path) -> None:
    """Killed before the first frame."""
    (tmp_path / "payments-boot1.spans").write_bytes(b"")

    assert list(read_boots(tmp_path)) == []
