"""The events of the shop as values, and their one wire form: Protocol Buffers, from `shop.proto`.

Decoding is strict where money is concerned: bytes that are no such event, an event without an order id or an amount,
and a payment status that this version does not know all raise `UndecodableError`. A status is never guessed, so
nothing unknown is ever taken for paid. Unknown fields are ignored, so newer producers can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from google.protobuf.message import DecodeError

from system import money
from system.events import shop_pb2


class UndecodableError(Exception):
    """These bytes are not the event they should be, and no redelivery will make them so."""


class PaymentStatus(Enum):
    """How a payment ended."""

    PAID = "PAID"
    DECLINED = "DECLINED"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCreated:
    """An order was accepted. amount_minor: hundredths of the currency. created_at_ns: Unix time."""

    order_id: str
    customer_id: str
    amount_minor: int
    currency: str
    created_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentProcessed:
    """A payment came to its end. payment_id: the charge, empty if declined. reason: why declined, empty if paid."""

    order_id: str
    status: PaymentStatus
    payment_id: str
    amount_minor: int
    currency: str
    reason: str
    processed_at_ns: int


def encode_order_created(event: OrderCreated) -> bytes:
    """The event's bytes, with the amount also as a double for readers that know no minor units."""
    return shop_pb2.OrderCreated(
        order_id=event.order_id,
        customer_id=event.customer_id,
        total_amount=money.total_from_minor(event.amount_minor),
        amount_minor=event.amount_minor,
        currency=event.currency,
        created_at_ns=event.created_at_ns,
    ).SerializeToString()


def decode_order_created(payload: bytes) -> OrderCreated:
    """The event in these bytes; one from a producer that knew no minor units gets them from its double."""
    try:
        message = shop_pb2.OrderCreated.FromString(payload)
    except DecodeError as error:
        raise UndecodableError(f"these {len(payload)} bytes are no OrderCreated: {error}") from None
    if not message.order_id:
        raise UndecodableError("OrderCreated without an order_id")
    try:
        amount_minor = message.amount_minor or money.minor_from_total(message.total_amount)
    except money.AmountError as error:
        raise UndecodableError(f"OrderCreated {message.order_id}: {error}") from None
    if amount_minor < 0:
        raise UndecodableError(f"OrderCreated {message.order_id}: amount_minor={amount_minor} is negative")
    return OrderCreated(
        order_id=message.order_id,
        customer_id=message.customer_id,
        amount_minor=amount_minor,
        currency=message.currency or money.DEFAULT_CURRENCY,
        created_at_ns=message.created_at_ns,
    )


def encode_payment_processed(event: PaymentProcessed) -> bytes:
    """The event's bytes."""
    return shop_pb2.PaymentProcessed(
        order_id=event.order_id,
        status=_to_wire(event.status),
        payment_id=event.payment_id,
        amount_minor=event.amount_minor,
        currency=event.currency,
        reason=event.reason,
        processed_at_ns=event.processed_at_ns,
    ).SerializeToString()


def decode_payment_processed(payload: bytes) -> PaymentProcessed:
    """The event in these bytes."""
    try:
        message = shop_pb2.PaymentProcessed.FromString(payload)
    except DecodeError as error:
        raise UndecodableError(f"these {len(payload)} bytes are no PaymentProcessed: {error}") from None
    if not message.order_id:
        raise UndecodableError("PaymentProcessed without an order_id")
    return PaymentProcessed(
        order_id=message.order_id,
        status=_from_wire(message.status, message.order_id),
        payment_id=message.payment_id,
        amount_minor=message.amount_minor,
        currency=message.currency,
        reason=message.reason,
        processed_at_ns=message.processed_at_ns,
    )


def _to_wire(status: PaymentStatus) -> shop_pb2.PaymentStatus:
    match status:
        case PaymentStatus.PAID:
            return shop_pb2.PAYMENT_STATUS_PAID
        case PaymentStatus.DECLINED:
            return shop_pb2.PAYMENT_STATUS_DECLINED


def _from_wire(status: int, order_id: str) -> PaymentStatus:
    if status == shop_pb2.PAYMENT_STATUS_PAID:
        return PaymentStatus.PAID
    if status == shop_pb2.PAYMENT_STATUS_DECLINED:
        return PaymentStatus.DECLINED
    raise UndecodableError(f"PaymentProcessed {order_id}: status {status} is unspecified or unknown")
