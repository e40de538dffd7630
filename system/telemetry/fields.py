"""The fields of OTLP's protobuf messages as bytes, written by hand.

Filling and serializing the generated classes takes three times as long. What stands before the content of a field
depends on little but its length, so these heads are kept; keeping whole attributes would save another 0.2 of 0.3 µs
for a constant one and cost 0.2 µs more for each that is not. The tests read everything back with the generated
classes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, StatusCode

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

KINDS: Mapping[SpanKind, int] = {
    SpanKind.INTERNAL: 1,
    SpanKind.SERVER: 2,
    SpanKind.CLIENT: 3,
    SpanKind.PRODUCER: 4,
    SpanKind.CONSUMER: 5,
}
"""The numbers of OTLP's enum; 0 is unspecified."""

# A tag is (field number << 3) | wire type: 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32. Of a Span:
TRACE_ID, SPAN_ID, PARENT_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
"""What stands before ids of 16, 8 and 8 bytes, big-endian as OTLP wants them; the first two also in a Link."""
_TRACE_STATE, _NAME, _KIND, _START, _END = b"\x1a", b"\x2a", 6 << 3, 7 << 3 | 1, 8 << 3 | 1
_ATTRIBUTE, _EVENT, _LINK, _STATUS, _FLAGS = b"\x4a", b"\x5a", b"\x6a", b"\x7a", b"\x85\x01"

SAMPLED, RANDOM = 0x01, 0x02
"""Bits of the flags as W3C has them: recorded by the caller; the trace id was drawn at random."""
REMOTE_IS_KNOWN, REMOTE = 0x100, 0x200
"""Bits of the flags as OTLP adds them: it is known whether the parent came in a header, and it did."""

_STATUSES: Mapping[StatusCode, int] = {StatusCode.UNSET: 0, StatusCode.OK: 1, StatusCode.ERROR: 2}

_TIMES = struct.Struct("<BQBQ")
_FIXED32 = struct.Struct("<I")
_FIXED64 = struct.Struct("<Q")
_DOUBLE = struct.Struct("<d")

# The bytes of a varint: its last one, and those that say that there is more.
_LAST = tuple(bytes((number,)) for number in range(128))
_MORE = tuple(bytes((number | 0x80,)) for number in range(128))
_VARINT_BYTES_MAX = 10
_64_BITS = 0xFFFF_FFFF_FFFF_FFFF  # of a negative number they are its two's complement
_NAMES_MAX = 256
_USUAL_TEXT_BYTES_MAX = 128
_HEADS_MAX = 2048


@lru_cache(maxsize=_NAMES_MAX)
def of_name(name: str, kind: SpanKind) -> bytes:
    """A span's name and kind."""
    return message(_NAME, utf8(name)) + bytes((_KIND, KINDS[kind]))


def of_trace_state(header: str) -> bytes:
    """A span's trace state."""
    return message(_TRACE_STATE, utf8(header))


def of_times(start_ns: int, end_ns: int) -> bytes:
    """When a span started and ended."""
    return _TIMES.pack(_START, start_ns, _END, end_ns)


def of_attribute(key: str, value: object, tag: bytes = _ATTRIBUTE) -> bytes:
    """One attribute, of a span unless the tag says otherwise."""
    # Nearly all are texts, and nearly all others numbers.
    if type(value) is str:
        text = utf8(value)
        return _text_head(tag, key, len(text)) + text
    content = b"\x18" + varint(value & _64_BITS) if type(value) is int else _value(value)
    return _value_head(tag, key, len(content)) + content


def of_attributes(attributes: Attributes, tag: bytes = _ATTRIBUTE) -> bytes:
    """Some attributes, of a span unless the tag says otherwise."""
    return b"".join([of_attribute(key, value, tag) for key, value in (attributes or {}).items()])


def of_event(name: str, attributes: Attributes, at_ns: int) -> bytes:
    """One of a span's events."""
    content = b"\x09" + _FIXED64.pack(at_ns) + message(b"\x12", utf8(name))
    return message(_EVENT, content + of_attributes(attributes, b"\x1a"))


def of_link(trace_id: bytes, span_id: bytes, flags: int, attributes: Attributes = None) -> bytes:
    """One of a span's links. flags: of the span it leads to."""
    content = TRACE_ID + trace_id + SPAN_ID + span_id + of_attributes(attributes, b"\x22") + b"\x35"
    return message(_LINK, content + _FIXED32.pack(flags))


def of_caller_link(trace_id: bytes, span_id: bytes) -> bytes:
    """A link to a span that came in a header, without attributes: `of_link` for a fifth of its time."""
    return _CALLER_LINK_HEAD + trace_id + SPAN_ID + span_id + _CALLER_LINK_TAIL


def of_status(code: StatusCode, description: str | None) -> bytes:
    """How a span ended."""
    told = message(b"\x12", utf8(description)) if description else b""
    return message(_STATUS, told + b"\x18" + _LAST[_STATUSES[code]])


def of_flags(flags: int) -> bytes:
    """A span's flags."""
    return _FLAGS + _FIXED32.pack(flags)


class AttributeHeads:
    """What stands before the value of one attribute that many spans have.

    texts: by the length of a text in bytes. numbers: by the length of a varint. bools: whole fields.
    """

    __slots__ = ("bools", "key", "numbers", "texts")

    def __init__(self, key: str) -> None:
        self.key = key
        self.texts = _TextHeads(key)
        self.numbers = tuple(
            _value_head(_ATTRIBUTE, key, 1 + length) + b"\x18" for length in range(_VARINT_BYTES_MAX + 1)
        )
        self.bools = of_attribute(key, False), of_attribute(key, True)  # noqa: FBT003 - the values of an attribute


class _TextHeads(dict[int, bytes]):
    """Made when a length is seen first, and kept if it is a usual one."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __missing__(self, length: int) -> bytes:
        head = _text_head(_ATTRIBUTE, self._key, length)
        if length <= _USUAL_TEXT_BYTES_MAX:
            self[length] = head
        return head


@lru_cache(maxsize=_HEADS_MAX)
def _text_head(tag: bytes, key: str, length: int) -> bytes:
    """What stands in a KeyValue before a text of this length."""
    value_head = b"\x0a" + varint(length)
    return _value_head(tag, key, len(value_head) + length) + value_head


@lru_cache(maxsize=_HEADS_MAX)
def _value_head(tag: bytes, key: str, length: int) -> bytes:
    """What stands in a KeyValue before an AnyValue of this length."""
    head = message(b"\x0a", utf8(key)) + b"\x12" + varint(length)
    return tag + varint(len(head) + length) + head


def _value(value: object) -> bytes:
    """The bytes of an `opentelemetry.proto.common.v1.AnyValue`."""
    match value:
        case None:
            return b""
        case bool():  # before int: True is an int too
            return b"\x10\x01" if value else b"\x10\x00"
        case int():
            return b"\x18" + varint(value & _64_BITS)
        case float():
            return b"\x21" + _DOUBLE.pack(value)
        case str():
            content = b"\x0a", utf8(value)
        case bytes():
            content = b"\x3a", value
        case Mapping():
            content = b"\x32", of_attributes(value, b"\x0a")
        case Sequence():
            content = b"\x2a", b"".join([message(b"\x0a", _value(item)) for item in value])
        case _:
            content = b"\x0a", utf8(str(value))
    return message(*content)


def utf8(text: str) -> bytes:
    """A text's bytes; one that is not UTF-8 would spoil a whole request for its reader, so it is made so."""
    return text.encode("utf-8", "replace")


def message(tag: bytes, content: bytes) -> bytes:
    """A field whose content has a length: a message, a text or bytes."""
    return tag + varint(len(content)) + content


def varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first; `number` is not negative."""
    if number < 1 << 7:
        return _LAST[number]
    if number < 1 << 14:
        return _MORE[number & 0x7F] + _LAST[number >> 7]
    if number < 1 << 21:
        return _MORE[number & 0x7F] + _MORE[number >> 7 & 0x7F] + _LAST[number >> 14]
    return _MORE[number & 0x7F] + _MORE[number >> 7 & 0x7F] + _MORE[number >> 14 & 0x7F] + varint(number >> 21)


_CALLER_LINK_TAIL = b"\x35" + _FIXED32.pack(SAMPLED | REMOTE_IS_KNOWN | REMOTE)
_CALLER_LINK_HEAD = _LINK + varint(len(TRACE_ID + SPAN_ID + _CALLER_LINK_TAIL) + 16 + 8) + TRACE_ID
