"""One ended span as the bytes of an `opentelemetry.proto.trace.v1.Span`, and many of them as one OTLP request.

A span is encoded once: the same bytes go to the spool and to the collector, and a request is put together around them
without decoding. The bytes are written by hand: filling and serializing the generated classes takes three times as
long. What stands before the content of a field depends on little but its length, so these heads are kept; keeping
whole attributes would save another 0.2 of 0.3 µs for a constant one and cost 0.2 µs more for each that is not. The
tests read everything back with the generated classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

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


KINDS: Mapping[SpanKind, int] = {
    SpanKind.INTERNAL: 1,
    SpanKind.SERVER: 2,
    SpanKind.CLIENT: 3,
    SpanKind.PRODUCER: 4,
    SpanKind.CONSUMER: 5,
}
"""The numbers of OTLP's enum; 0 is unspecified."""

_KIND_FIELDS = {kind: bytes((6 << 3, number)) for kind, number in KINDS.items()}
_STATUSES: Mapping[StatusCode, int] = {StatusCode.UNSET: 0, StatusCode.OK: 1, StatusCode.ERROR: 2}

# A tag is (field number << 3) | wire type: 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32.
_TRACE_AND_SPAN = struct.Struct(">2s16s2s8s")  # two ids, big-endian as OTLP wants them, each behind tag and length
_TIMES = struct.Struct("<BQBQ")
_START, _END = 7 << 3 | 1, 8 << 3 | 1
_FIXED32 = struct.Struct("<I")
_FIXED64 = struct.Struct("<Q")
_DOUBLE = struct.Struct("<d")

_ONE_BYTE_MAX = 0x7F
_ONE_BYTE = tuple(bytes((number,)) for number in range(_ONE_BYTE_MAX + 1))
_AND_MORE = tuple(bytes((number | 0x80,)) for number in range(_ONE_BYTE_MAX + 1))
_64_BITS = 0xFFFF_FFFF_FFFF_FFFF  # of a negative number they are its two's complement
_NAMES_MAX = 256
_HEADS_MAX = 2048

# Bits 8 and 9 of the flags: "it is known whether the parent is remote" and "it is".
_REMOTE_IS_KNOWN = 0x100
_REMOTE = 0x200


def encode_span(span: EncodableSpan, extra: Mapping[str, int]) -> bytes:
    """The bytes of one ended span, with `extra` after its own attributes."""
    context, parent, status = span.context, span.parent, span.status
    parts = [_ids(context)]
    if context.trace_state:
        parts.append(_field(b"\x1a", context.trace_state.to_header().encode()))
    if parent is not None:
        parts.append(b"\x22\x08" + parent.span_id.to_bytes(8, "big"))
    parts += (
        _name(span.name),
        _KIND_FIELDS[span.kind],
        _TIMES.pack(_START, span.start_time or 0, _END, span.end_time or 0),
    )
    parts += [_attribute(b"\x4a", key, value) for key, value in (span.attributes or {}).items()]
    parts += [_attribute(b"\x4a", key, value) for key, value in extra.items()]
    for event in span.events:
        content = b"\x09" + _FIXED64.pack(event.timestamp) + _field(b"\x12", _utf8(event.name))
        parts.append(_field(b"\x5a", content + _attributes(b"\x1a", event.attributes)))
    for link in span.links:
        flags = b"\x35" + _FIXED32.pack(_flags(link.context, link.context))
        parts.append(_field(b"\x6a", _ids(link.context) + _attributes(b"\x22", link.attributes) + flags))
    if status.status_code is not StatusCode.UNSET:
        description = _field(b"\x12", _utf8(status.description)) if status.description else b""
        parts.append(_field(b"\x7a", description + b"\x18" + _ONE_BYTE[_STATUSES[status.status_code]]))
    parts.append(b"\x85\x01" + _FIXED32.pack(_flags(context, parent)))
    return b"".join(parts)


def encode_resource(attributes: Mapping[str, str | int]) -> bytes:
    """The bytes of an `opentelemetry.proto.resource.v1.Resource`."""
    return _attributes(b"\x0a", attributes)


def encode_request(resource: bytes, scope_name: str, spans: Iterable[bytes]) -> bytes:
    """The bytes of an ExportTraceServiceRequest around spans that are already encoded."""
    scope = _field(b"\x0a", _utf8(scope_name))
    # ScopeSpans {scope = 1; spans = 2} within ResourceSpans {resource = 1; scope_spans = 2} within resource_spans = 1.
    scope_spans = b"".join((_field(b"\x0a", scope), *(_field(b"\x12", span) for span in spans)))
    return _field(b"\x0a", _field(b"\x0a", resource) + _field(b"\x12", scope_spans))


def _ids(context: SpanContext) -> bytes:
    trace_id, span_id = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
    return _TRACE_AND_SPAN.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id)


def _flags(context: SpanContext, parent: SpanContext | None) -> int:
    remote = _REMOTE if parent is not None and parent.is_remote else 0
    return context.trace_flags | _REMOTE_IS_KNOWN | remote


@lru_cache(maxsize=_NAMES_MAX)
def _name(name: str) -> bytes:
    return _field(b"\x2a", _utf8(name))


def _attributes(tag: bytes, attributes: Attributes) -> bytes:
    return b"".join([_attribute(tag, key, value) for key, value in (attributes or {}).items()])


def _attribute(tag: bytes, key: str, value: object) -> bytes:
    # Nearly all are texts, and nearly all others numbers.
    if type(value) is str:
        text = _utf8(value)
        return _text_head(tag, key, len(text)) + text
    content = b"\x18" + _varint(value & _64_BITS) if type(value) is int else _value(value)
    return _value_head(tag, key, len(content)) + content


@lru_cache(maxsize=_HEADS_MAX)
def _text_head(tag: bytes, key: str, length: int) -> bytes:
    """What stands in a KeyValue before a text of this length."""
    value_head = b"\x0a" + _varint(length)
    return _value_head(tag, key, len(value_head) + length) + value_head


@lru_cache(maxsize=_HEADS_MAX)
def _value_head(tag: bytes, key: str, length: int) -> bytes:
    """What stands in a KeyValue before an AnyValue of this length."""
    head = _field(b"\x0a", _utf8(key)) + b"\x12" + _varint(length)
    return tag + _varint(len(head) + length) + head


def _value(value: object) -> bytes:
    """The bytes of an `opentelemetry.proto.common.v1.AnyValue`."""
    match value:
        case None:
            return b""
        case bool():  # before int: True is an int too
            return b"\x10\x01" if value else b"\x10\x00"
        case int():
            return b"\x18" + _varint(value & _64_BITS)
        case float():
            return b"\x21" + _DOUBLE.pack(value)
        case str():
            content = b"\x0a", _utf8(value)
        case bytes():
            content = b"\x3a", value
        case Mapping():
            content = b"\x32", _attributes(b"\x0a", value)
        case Sequence():
            content = b"\x2a", b"".join([_field(b"\x0a", _value(item)) for item in value])
        case _:
            content = b"\x0a", _utf8(str(value))
    return _field(*content)


def _utf8(text: str) -> bytes:
    # One string that is not UTF-8 would spoil a whole request for its reader.
    return text.encode("utf-8", "replace")


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first; `number` is not negative."""
    if number <= _ONE_BYTE_MAX:
        return _ONE_BYTE[number]
    return _AND_MORE[number & _ONE_BYTE_MAX] + _varint(number >> 7)
