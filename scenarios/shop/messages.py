"""Which order a stored message is about."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from system.events.shop_pb2 import OrderCancelled, OrderCreated, PaymentProcessed

DEAD_LETTERS = "deadletters."
DEAD_LETTER_ORDER = "Dead-Letter-Order"

_EVENTS: Mapping[str, type[OrderCreated | OrderCancelled | PaymentProcessed]] = {
    "orders.created": OrderCreated,
    "orders.cancelled": OrderCancelled,
    "payments.processed": PaymentProcessed,
}


def key_of_message(subject: str, headers: Mapping[str, str], payload: bytes) -> str | None:
    """Return the order's id, None for a subject we do not know or a payload that is no event."""
    if subject.startswith(DEAD_LETTERS):
        return headers.get(DEAD_LETTER_ORDER) or None
    event = _EVENTS.get(subject)
    if event is None:
        return None
    try:
        return event.FromString(payload).order_id or None
    except DecodeError:
        return None
