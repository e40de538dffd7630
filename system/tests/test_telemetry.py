"""Spans: their numbers, their bytes, the spool they survive in, and their way to a collector."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span

from system import telemetry
from system.metrics import Metrics
from system.settings import Address, TelemetrySettings
from system.telemetry import SpanTemplate, Telemetry
from system.telemetry.spool import SLOT_COUNT
from system.tests.parts import free_port, wait_until
from system.web import Request, Response, Server

WORK = SpanTemplate("work on it", SpanKind.CONSUMER, {"constant": True}, ("order.id", "number"))
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def read_frames(path: Path) -> list[bytes]:
    """The frames of a `.spans` file and of the tail beside it: an independent reader of the contract."""
    table = path.with_suffix(".open").read_bytes()
    moved, length, origin = struct.unpack_from("<QQQ", table, 32)
    tail = table[64 + 4096 * 128 :]
    content, frames, at = path.read_bytes()[:moved], [], 0
    assert len(content) == moved
    content += tail[moved - origin : length - origin] if length > moved else b""
    while at < len(content):
        (size,) = struct.unpack_from("<I", content, at)
        frames.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    assert at == len(content)
    return frames


def read_open(path: Path) -> tuple[int, int, dict[int, tuple[bytes, bytes, bytes, int, str]]]:
    """Started, ended, and the open spans by number from a `.open` file: an independent reader of the contract."""
    content = path.read_bytes()
    magic, started, ended, slots, size = struct.unpack_from("<8sQQII", content)
    assert (magic, slots, size) == (b"SPOPEN02", 4096, 128)
    found = {}
    for at in range(64, 64 + slots * size, size):
        seq, start, trace, span, parent, kind, length = struct.unpack_from("<QQ16s8s8sBB", content, at)
        if seq:
            assert start > 0
            found[seq] = (trace, span, parent, kind, content[at + 50 : at + 50 + length].decode())
    return started, ended, found


def settings(directory: Path | None = None, endpoint: str | None = None) -> TelemetrySettings:
    """Telemetry of a service called test."""
    return TelemetrySettings(service_name="test", endpoint=endpoint, spool_directory=directory)


def attributes_of(span: Span) -> Mapping[str, object]:
    """The attributes as a mapping."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


async def test_ended_spans_and_open_ones_are_on_disk_at_any_moment(tmp_path: Path, metrics: Metrics) -> None:
    """Two spans ended, one open: exactly that can be read while the process still runs."""
    async with Telemetry(settings(tmp_path), metrics) as spans:
        stem = tmp_path / f"test-{spans.instance}"
        with spans.tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
            with spans.tracer.start_as_current_span("first", attributes={"order.id": "o1"}):
                pass
            with spans.tracer.start_as_current_span("second " + "ä" * 60, kind=SpanKind.CLIENT):
                during = read_open(stem.with_suffix(".open"))
        after = read_open(stem.with_suffix(".open"))
        resource, *frames = read_frames(stem.with_suffix(".spans"))

    context = outer.get_span_context()
    trace = context.trace_id.to_bytes(16, "big")
    started, ended, found = during
    assert (started, ended, set(found)) == (3, 1, {1, 3})
    assert found[1] == (trace, context.span_id.to_bytes(8, "big"), bytes(8), Span.SPAN_KIND_SERVER, "outer")
    assert found[3][2:4] == (context.span_id.to_bytes(8, "big"), Span.SPAN_KIND_CLIENT)
    assert found[3][4].startswith("second ää")
    assert after == (3, 3, {})
    written = [Span.FromString(frame) for frame in frames]
    assert [attributes_of(span)["telemetry.seq"] for span in written] == [2, 3, 1]
    assert attributes_of(written[0])["order.id"] == "o1"
    names = {each.key: each.value.string_value for each in Resource.FromString(resource).attributes}
    assert (names["service.name"], names["service.instance.id"]) == ("test", spans.instance)


async def test_spans_of_templates_are_numbered_spooled_and_shipped_like_any_other(
    tmp_path: Path, metrics: Metrics
) -> None:
    """One count for both kinds; the same bytes in the spool and at the collector."""
    collector, port = Collector(), free_port()
    async with (
        Server(Address(host="127.0.0.1", port=port), collector),
        Telemetry(settings(tmp_path, f"http://127.0.0.1:{port}"), metrics) as spans,
    ):
        stem = tmp_path / f"test-{spans.instance}"
        with spans.tracer.start_as_current_span("outer"):
            hot = spans.tracer.begin(WORK)
            during = read_open(stem.with_suffix(".open"))
            hot.end("o1", 7)
        late = spans.tracer.begin(WORK)
        _, *frames = read_frames(stem.with_suffix(".spans"))
    late.end("o2", 8)

    started, ended, found = during
    assert (started, ended, set(found)) == (2, 0, {1, 2})
    assert found[2] == (hot.trace_id, hot.span_id, hot.parent_id, Span.SPAN_KIND_CONSUMER, "work on it")
    inner, _ = (Span.FromString(frame) for frame in frames)
    assert attributes_of(inner) == {"constant": True, "order.id": "o1", "number": 7, "telemetry.seq": 2}
    assert read_open(stem.with_suffix(".open"))[2].keys() == {3}
    assert collector.names == ["work on it", "outer"]


async def test_more_open_spans_than_slots_are_counted_and_nothing_breaks(tmp_path: Path, metrics: Metrics) -> None:
    """The surplus has no slot, but its number and, in the end, its frame."""
    async with Telemetry(settings(tmp_path), metrics) as spans:
        many = [spans.tracer.start_span("s") for _ in range(SLOT_COUNT + 10)]
        started, ended, found = read_open(tmp_path / f"test-{spans.instance}.open")
        assert (started, ended, len(found)) == (SLOT_COUNT + 10, 0, SLOT_COUNT)
        for span in many:
            span.end()
        assert read_open(tmp_path / f"test-{spans.instance}.open") == (SLOT_COUNT + 10, SLOT_COUNT + 10, {})


async def test_a_span_keeps_everything_on_its_way_into_bytes(tmp_path: Path, metrics: Metrics) -> None:
    """Parent, link, event, status and every kind of attribute value."""
    parent = telemetry.extract({"TraceParent": TRACEPARENT})
    remote = get_current_span(parent).get_span_context()
    async with Telemetry(settings(tmp_path), metrics) as spans:
        with spans.tracer.start_as_current_span(
            "s",
            context=parent,
            kind=SpanKind.CONSUMER,
            links=[Link(remote)],
            attributes={"text": "t", "yes": True, "number": -7, "real": 0.5, "list": ["a", "b"]},
        ) as span:
            span.add_event("happened", {"when": "now"})
            span.set_status(Status(StatusCode.ERROR, "no"))
        _, frame = read_frames(tmp_path / f"test-{spans.instance}.spans")

    message = Span.FromString(frame)
    assert message.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert message.parent_span_id.hex() == "b7ad6b7169203331"
    assert message.kind == Span.SPAN_KIND_CONSUMER
    assert [link.span_id.hex() for link in message.links] == ["b7ad6b7169203331"]
    assert [event.name for event in message.events] == ["happened"]
    assert (message.status.code, message.status.message) == (2, "no")
    assert message.end_time_unix_nano >= message.start_time_unix_nano > 0
    values = {each.key: each.value for each in message.attributes}
    assert (values["text"].string_value, values["yes"].bool_value, values["number"].int_value) == ("t", True, -7)
    assert values["real"].double_value == 0.5
    assert [item.string_value for item in values["list"].array_value.values] == ["a", "b"]


async def test_the_current_span_travels_in_headers(metrics: Metrics) -> None:
    """What inject writes, extract reads, whatever case the names arrive in; nothing is nothing."""
    async with Telemetry(settings(), metrics) as spans:
        headers: dict[str, str] = {}
        with spans.tracer.start_as_current_span("s") as span:
            telemetry.inject(headers)
        shouted = {name.upper(): value for name, value in headers.items()}
        read = get_current_span(telemetry.extract(shouted)).get_span_context()

    assert read.span_id == span.get_span_context().span_id
    assert not get_current_span(telemetry.extract({})).get_span_context().is_valid
    assert not get_current_span(telemetry.extract({"traceparent": "rubbish"})).get_span_context().is_valid


class Collector:
    """An OTLP collector that takes what it gets, or answers as it is told."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.names: list[str] = []
        self.services: set[str] = set()

    async def __call__(self, request: Request) -> Response:
        """Take or refuse."""
        if self.statuses:
            return Response(status=self.statuses.pop(0))
        assert (request.path, request.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        for resource_spans in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            self.services |= {each.value.string_value for each in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                assert scope_spans.scope.name == "system"
                self.names += [span.name for span in scope_spans.spans]
        return Response(status=200)


async def test_spans_reach_a_collector_that_was_not_there_at_first(metrics: Metrics) -> None:
    """Refused connections, then 503, then taken: each span once, in order."""
    collector, port = Collector(), free_port()
    collector.statuses = [503, 429]
    async with Telemetry(settings(endpoint=f"http://127.0.0.1:{port}"), metrics) as spans:
        for number in range(5000):
            spans.tracer.start_span(f"s{number}").end()
        async with Server(Address(host="127.0.0.1", port=port), collector, body_max_bytes=10_000_000):
            await wait_until(lambda: len(collector.names) == 5000)

    assert collector.names == [f"s{number}" for number in range(5000)]
    assert "test" in collector.services
    assert metrics.counter("spans_shipped", "").value == 5000
    assert metrics.counter("spans_dropped", "").value == 0


async def test_the_last_spans_are_shipped_at_the_end(metrics: Metrics) -> None:
    """A span that ended just before the process does not wait for the next batch."""
    collector, port = Collector(), free_port()
    async with Server(Address(host="127.0.0.1", port=port), collector):
        async with Telemetry(settings(endpoint=f"http://127.0.0.1:{port}"), metrics) as spans:
            spans.tracer.start_span("last").end()

        assert collector.names == ["last"]


async def test_a_collector_that_stays_away_costs_spans_and_says_so(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded, the end is bounded, and every lost span is counted."""
    monkeypatch.setattr("system.telemetry.shipping.QUEUE_SPANS_MAX", 10)
    monkeypatch.setattr("system.telemetry.shipping.FLUSH_WITHIN_S", 0.1)
    async with Telemetry(settings(endpoint=f"http://127.0.0.1:{free_port()}"), metrics) as spans:
        for _ in range(25):
            spans.tracer.start_span("s").end()

    assert metrics.counter("spans_dropped", "").value == 25


def test_metrics_render_in_the_text_format(metrics: Metrics) -> None:
    """A counter, a gauge and a label."""
    metrics.counter("orders_accepted", "Orders answered with 202").add(3)
    metrics.gauge("in_hand", "Now", label="consumer", value="worker").add(2)

    text = metrics.rendered().decode()

    assert "orders_accepted_total 3.0" in text
    assert 'in_hand{consumer="worker"} 2.0' in text
