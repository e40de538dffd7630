"""The events of the shop as values, and their one wire form: Protocol Buffers, from `shop.proto`.

Decoding is strict where money is concerned: bytes that are no such event, an event without an order id or an amount,
and a payment status that this version does not know all raise `UndecodableError`. A status is never guessed, so
nothing unknown is ever taken for paid. Unknown fields are ignored, so newer producers can be read; what a field may
become is held against `baseline/shop.proto`, the schema of the last release, by `buf breaking`.

Encoding and decoding are in `codec.py`, which is imported when the first of its functions is asked for here: it needs
the generated code, and `python -m system.events.generate` has to run just when that is stale, broken or not there.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from system.events.codec import (
        decode_order_cancelled,
        decode_order_created,
        decode_payment_processed,
        encode_order_cancelled,
        encode_order_created,
        encode_payment_processed,
    )

__all__ = [
    "OrderCancelled",
    "OrderCreated",
    "PaymentProcessed",
    "PaymentStatus",
    "UndecodableError",
    "decode_order_cancelled",
    "decode_order_created",
    "decode_payment_processed",
    "encode_order_cancelled",
    "encode_order_created",
    "encode_payment_processed",
]


class UndecodableError(Exception):
    """These bytes are not the event they should be, and no redelivery will make them so."""


class PaymentStatus(Enum):
    """How a payment ended."""

    PAID = "PAID"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"
    CANCELLED = "CANCELLED"


# msgspec's classes and not dataclasses: five are made for every order, and a frozen dataclass takes five times as long.
class OrderCreated(msgspec.Struct, frozen=True, kw_only=True):
    """An order was accepted. amount_minor: hundredths of the currency. created_at_ns: Unix time."""

    order_id: str
    customer_id: str
    amount_minor: int
    currency: str
    created_at_ns: int


class OrderCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A customer wants an order undone.

    reason: what they said, or empty. cancelled_at_ns: Unix time. amount_minor, currency: the order's, so that it can be
    undone before it was charged; 0 and empty if whoever took the cancellation did not say.
    """

    order_id: str
    reason: str
    cancelled_at_ns: int
    amount_minor: int = 0
    currency: str = ""


class PaymentProcessed(msgspec.Struct, frozen=True, kw_only=True):
    """A payment came to its end, or was undone.

    payment_id: the charge, empty if there was none. refund_id: empty unless refunded. reason: why it was declined,
    refunded or cancelled; empty if paid.
    """

    order_id: str
    status: PaymentStatus
    payment_id: str
    amount_minor: int
    currency: str
    reason: str
    processed_at_ns: int
    refund_id: str = ""


def __getattr__(name: str) -> object:
    """A function of `codec.py`, from then on found without this detour."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from system.events import codec  # noqa: PLC0415 - see the module's docstring

    found: object = getattr(codec, name)
    globals()[name] = found
    return found
