"""Events to bytes and back."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError

from system import money
from system.events import OrderCancelled, OrderCreated, PaymentProcessed, PaymentStatus, UndecodableError, shop_pb2

_TO_WIRE = {
    PaymentStatus.PAID: shop_pb2.PAYMENT_STATUS_PAID,
    PaymentStatus.DECLINED: shop_pb2.PAYMENT_STATUS_DECLINED,
    PaymentStatus.REFUNDED: shop_pb2.PAYMENT_STATUS_REFUNDED,
    PaymentStatus.CANCELLED: shop_pb2.PAYMENT_STATUS_CANCELLED,
}
_FROM_WIRE: dict[int, PaymentStatus] = {number: status for status, number in _TO_WIRE.items()}

_M = TypeVar("_M", shop_pb2.OrderCreated, shop_pb2.OrderCancelled, shop_pb2.PaymentProcessed)


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
    message = _parsed(shop_pb2.OrderCreated, payload)
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


def encode_order_cancelled(event: OrderCancelled) -> bytes:
    """The event's bytes."""
    return shop_pb2.OrderCancelled(
        order_id=event.order_id,
        reason=event.reason,
        cancelled_at_ns=event.cancelled_at_ns,
        amount_minor=event.amount_minor,
        currency=event.currency,
    ).SerializeToString()


def decode_order_cancelled(payload: bytes) -> OrderCancelled:
    """The event in these bytes."""
    message = _parsed(shop_pb2.OrderCancelled, payload)
    if message.amount_minor < 0:
        raise UndecodableError(f"OrderCancelled {message.order_id}: amount_minor={message.amount_minor} is negative")
    return OrderCancelled(
        order_id=message.order_id,
        reason=message.reason,
        cancelled_at_ns=message.cancelled_at_ns,
        amount_minor=message.amount_minor,
        currency=message.currency,
    )


def encode_payment_processed(event: PaymentProcessed) -> bytes:
    """The event's bytes."""
    return shop_pb2.PaymentProcessed(
        order_id=event.order_id,
        status=_TO_WIRE[event.status],
        payment_id=event.payment_id,
        amount_minor=event.amount_minor,
        currency=event.currency,
        reason=event.reason,
        processed_at_ns=event.processed_at_ns,
        refund_id=event.refund_id,
    ).SerializeToString()


def decode_payment_processed(payload: bytes) -> PaymentProcessed:
    """The event in these bytes."""
    message = _parsed(shop_pb2.PaymentProcessed, payload)
    return PaymentProcessed(
        order_id=message.order_id,
        status=_from_wire(message.status, message.order_id),
        payment_id=message.payment_id,
        amount_minor=message.amount_minor,
        currency=message.currency,
        reason=message.reason,
        processed_at_ns=message.processed_at_ns,
        refund_id=message.refund_id,
    )


def _parsed(kind: type[_M], payload: bytes) -> _M:
    try:
        message = kind.FromString(payload)
    except DecodeError as error:
        raise UndecodableError(f"these {len(payload)} bytes are no {kind.__name__}: {error}") from None
    if not message.order_id:
        raise UndecodableError(f"{kind.__name__} without an order_id")
    return message


def _from_wire(status: int, order_id: str) -> PaymentStatus:
    known = _FROM_WIRE.get(status)
    if known is None:
        raise UndecodableError(f"PaymentProcessed {order_id}: status {status} is unspecified or unknown")
    return known
