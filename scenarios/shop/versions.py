"""Events as other versions of the services write them: bytes, made without our own encoders.

The first version knew no minor units and no currency. The next one has fields and a status that nobody here has heard
of. Both are written field by field (number, wire type, value), because our generated classes cannot write them.
"""

from __future__ import annotations

import struct

_VARINT, _FIXED64, _BYTES = 0, 1, 2
_UNKNOWN_FIELD = 51
_UNKNOWN_STATUS = 77


def an_order_of_the_first_version(order_id: str, *, euros: float) -> bytes:
    """Return an `OrderCreated` with an id, a customer and a double."""
    return _text(1, order_id) + _text(2, "c001") + _tag(4, _FIXED64) + struct.pack("<d", euros)


def an_order_of_the_next_version(order_id: str, *, cents: int) -> bytes:
    """Return an `OrderCreated` with everything we know, and a field that we do not."""
    known = _text(1, order_id) + _text(2, "c001") + _tag(4, _FIXED64) + struct.pack("<d", cents / 100)
    return known + _number(5, cents) + _text(6, "EUR") + _number(7, 1) + _text(_UNKNOWN_FIELD, "gift wrapped")


def a_status_of_the_next_version(order_id: str) -> bytes:
    """Return a `PaymentProcessed` whose status we do not know."""
    return _text(1, order_id) + _number(3, _UNKNOWN_STATUS) + _text(4, "ch_next")


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _text(field: int, text: str) -> bytes:
    content = text.encode()
    return _tag(field, _BYTES) + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return _tag(field, _VARINT) + _varint(number)


def _varint(number: int) -> bytes:
    head, rest = number & 0x7F, number >> 7
    return bytes((head | 0x80,)) + _varint(rest) if rest else bytes((head,))
