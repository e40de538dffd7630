"""From OTLP bytes to span rows.

Takes `ExportTraceServiceRequest` bodies from any SDK and yields `Span`, `SpanLink` and `SpanEvent` rows. Numbers within
a boot come from the attribute `telemetry.seq`; a span without it has `seq=None` and its loss cannot be measured.
Ids that are not 16 and 8 bytes, or all zero, make a span invalid: it is refused and counted, as OTLP's partial success
asks.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from harness.records import Span, SpanEvent, SpanId, SpanLink, TraceId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

SEQUENCE_ATTRIBUTE = "telemetry.seq"
UNKNOWN_SERVICE = "unknown_service"

_KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "ok", "error")
_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8

Scalar = str | int | float | bool | None
Attribute = Scalar | list["Attribute"] | dict[str, "Attribute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The process that made a span: its service name and its boot."""

    service: str
    instance: str


def parse(body: bytes) -> ExportTraceServiceRequest:
    """Parse one body. Raises ValueError when it is not an ExportTraceServiceRequest."""
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except Exception as error:  # protobuf's DecodeError has no public home in every runtime
        raise ValueError(f"not an ExportTraceServiceRequest: {error}") from error
    return request


def invalid_spans(request: ExportTraceServiceRequest) -> int:
    """Count the spans whose ids cannot be ids; `spans_of` leaves them out."""
    return sum(
        not is_valid(span)
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    )


def spans_of(request: ExportTraceServiceRequest) -> Iterator[tuple[Origin, trace_pb2.Span]]:
    """Yield the valid spans of one request, each with the process it came from."""
    for resource_spans in request.resource_spans:
        origin = origin_of(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if is_valid(span):
                    yield origin, span


def origin_of(resource: Resource) -> Origin:
    """Read service name and boot from a resource."""
    attributes = _attributes(resource.attributes)
    return Origin(
        service=str(attributes.get("service.name", UNKNOWN_SERVICE)),
        instance=str(attributes.get("service.instance.id", "")),
    )


def span_rows(
    span: trace_pb2.Span, origin: Origin, key_attributes: tuple[str, ...]
) -> Iterator[Span | SpanLink | SpanEvent]:
    """Yield the row of one span, then those of its links and events."""
    attributes = _attributes(span.attributes)
    sequence = attributes.pop(SEQUENCE_ATTRIBUTE, None)
    trace_id = TraceId(span.trace_id.hex())
    span_id = _span_id(span.span_id)
    yield Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=_span_id(span.parent_span_id) if any(span.parent_span_id) else None,
        service=origin.service,
        instance=origin.instance,
        seq=sequence if isinstance(sequence, int) else None,
        name=span.name,
        kind=kind_name(span.kind),
        began_ns=_signed(span.start_time_unix_nano),
        ended_ns=_signed(span.end_time_unix_nano),
        status=_STATUSES[span.status.code] if 0 <= span.status.code < len(_STATUSES) else "unset",
        key=next((str(attributes[name]) for name in key_attributes if name in attributes), None),
        attributes=json.dumps(attributes, ensure_ascii=True),
    )
    for link in span.links:
        if len(link.trace_id) == _TRACE_ID_BYTES and len(link.span_id) == _SPAN_ID_BYTES:
            yield SpanLink(
                trace_id=trace_id,
                span_id=span_id,
                linked_trace_id=TraceId(link.trace_id.hex()),
                linked_span_id=_span_id(link.span_id),
            )
    for event in span.events:
        yield SpanEvent(
            trace_id=trace_id,
            span_id=span_id,
            at_ns=_signed(event.time_unix_nano),
            name=event.name,
            attributes=json.dumps(_attributes(event.attributes), ensure_ascii=True),
        )


def is_valid(span: trace_pb2.Span) -> bool:
    """Tell whether a span's ids can be ids: of the right length, and not all zero."""
    return (
        len(span.trace_id) == _TRACE_ID_BYTES
        and len(span.span_id) == _SPAN_ID_BYTES
        and len(span.parent_span_id) in (0, _SPAN_ID_BYTES)
        and any(span.trace_id)
        and any(span.span_id)
    )


def kind_name(number: int) -> str:
    """Return OTLP's span kind in lower case; unspecified and unknown ones are internal."""
    return _KINDS[number] if 0 <= number < len(_KINDS) else "internal"


def _span_id(octets: bytes) -> SpanId:
    return SpanId(int.from_bytes(octets, "big"))


def _signed(nanoseconds: int) -> int:
    # A fixed64 can hold more than the BIGINT column; such a time is nonsense, but must not fail the batch.
    return min(nanoseconds, 2**63 - 1)


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Attribute]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Attribute:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    plain: Scalar = getattr(value, kind)
    return plain
