"""One ended span as the bytes of an `opentelemetry.proto.trace.v1.Span`, and many of them as one OTLP request.

A span is encoded once: the same bytes go to the spool and to the collector, and a request is put together around them
without decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from system.telemetry import fields

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes


class EncodableEvent(Protocol):
    """What is read of an event."""

    @property
    def name(self) -> str:
        """What happened."""

    @property
    def attributes(self) -> Attributes:
        """More about it."""

    @property
    def timestamp(self) -> int:
        """Unix time in ns."""


class EncodableLink(Protocol):
    """What is read of a link."""

    @property
    def context(self) -> SpanContext:
        """Where it leads."""

    @property
    def attributes(self) -> Attributes:
        """More about it."""


class EncodableSpan(Protocol):
    """What is read of a span: of ours, and as well of the SDK's."""

    @property
    def name(self) -> str:
        """What it is of."""

    @property
    def context(self) -> SpanContext:
        """Who it is."""

    @property
    def parent(self) -> SpanContext | None:
        """Who it is under; None for a root."""

    @property
    def kind(self) -> SpanKind:
        """Its part in the story."""

    @property
    def start_time(self) -> int | None:
        """Unix time in ns."""

    @property
    def end_time(self) -> int | None:
        """Unix time in ns."""

    @property
    def attributes(self) -> Attributes:
        """More about it."""

    @property
    def events(self) -> Sequence[EncodableEvent]:
        """What happened during it."""

    @property
    def links(self) -> Sequence[EncodableLink]:
        """Where it leads."""

    @property
    def status(self) -> Status:
        """How it ended."""


def encode_span(span: EncodableSpan, extra: Mapping[str, int]) -> bytes:
    """The bytes of one ended span, with `extra` after its own attributes."""
    context, parent, status = span.context, span.parent, span.status
    trace_id, span_id = ids(context)
    parts = [fields.TRACE_ID, trace_id, fields.SPAN_ID, span_id]
    if context.trace_state:
        parts.append(fields.of_trace_state(context.trace_state.to_header()))
    if parent is not None:
        parts += (fields.PARENT_ID, ids(parent)[1])
    parts += (fields.of_name(span.name, span.kind), fields.of_times(span.start_time or 0, span.end_time or 0))
    parts += (fields.of_attributes(span.attributes), fields.of_attributes(extra))
    parts += [fields.of_event(event.name, event.attributes, event.timestamp) for event in span.events]
    parts += [
        fields.of_link(*ids(link.context), _flags(link.context, link.context), link.attributes) for link in span.links
    ]
    if status.status_code is not StatusCode.UNSET:
        parts.append(fields.of_status(status.status_code, status.description))
    parts.append(fields.of_flags(_flags(context, parent)))
    return b"".join(parts)


def encode_resource(attributes: Mapping[str, str | int]) -> bytes:
    """The bytes of an `opentelemetry.proto.resource.v1.Resource`."""
    return fields.of_attributes(attributes, b"\x0a")


def encode_request(resource: bytes, scope_name: str, spans: Sequence[bytes]) -> bytes:
    """The bytes of an ExportTraceServiceRequest around spans that are already encoded."""
    lengths = list(map(len, spans))
    heads = list(map(_SPAN_HEADS.__getitem__, lengths))
    # ScopeSpans {scope = 1; spans = 2} within ResourceSpans {resource = 1; scope_spans = 2} within resource_spans = 1.
    # From the inside out only what stands before: the spans are copied once.
    before = fields.message(b"\x0a", fields.message(b"\x0a", fields.utf8(scope_name)))
    size = sum(lengths) + sum(map(len, heads))
    before = fields.message(b"\x0a", resource) + b"\x12" + fields.varint(len(before) + size) + before
    before = b"\x0a" + fields.varint(len(before) + size) + before
    return b"".join((before, *chain.from_iterable(zip(heads, spans, strict=True))))


def ids(context: SpanContext) -> tuple[bytes, bytes]:
    """The ids of a trace and a span, as OTLP has them."""
    return context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")


def _flags(context: SpanContext, parent: SpanContext | None) -> int:
    remote = fields.REMOTE if parent is not None and parent.is_remote else 0
    return context.trace_flags | fields.REMOTE_IS_KNOWN | remote


class _SpanHeads(dict[int, bytes]):
    """What stands before a span in a request, by the span's length: putting a request together is no work per span."""

    def __missing__(self, length: int) -> bytes:
        head = b"\x12" + fields.varint(length)
        if length <= _USUAL_SPAN_BYTES_MAX:
            self[length] = head
        return head


_USUAL_SPAN_BYTES_MAX = 4096
_SPAN_HEADS = _SpanHeads()
