"""The shop's streams, consumers, subjects and message ids: what everybody who talks through the broker must agree on.

Both services ensure all streams, so they may start in any order. These names stay.
"""

from __future__ import annotations

from dataclasses import replace

import system.events.codec  # noqa: F401 - at the start, so that no first event waits 30 ms for it
from system.events import PaymentStatus
from system.jetstream import Connection, ConsumerSpec, StreamSpec, ensure_consumer, ensure_stream

ORDERS_CREATED = "orders.created"
ORDERS_CANCELLED = "orders.cancelled"
PAYMENTS_PROCESSED = "payments.processed"

DEDUP_WINDOW_S = 120.0
"""Far above every deadline for a publish, so that a retry always falls into it."""

ORDERS = StreamSpec(name="ORDERS", subject="orders.>", dedup_window_s=DEDUP_WINDOW_S)
PAYMENTS = StreamSpec(name="PAYMENTS", subject="payments.>", dedup_window_s=DEDUP_WINDOW_S)

DEAD_LETTERS = StreamSpec(name="DEADLETTERS", subject="deadletters.>", dedup_window_s=DEDUP_WINDOW_S)
"""What could not be handled, as `system.deadletters` keeps it: one subject per consumer that gave up."""

PREFETCH = 256
REPLICAS = 4
ACK_PENDING_MAX = PREFETCH * REPLICAS
"""So that as many replicas of a service can each fill their hands."""


def projections(ack_wait_s: float) -> tuple[ConsumerSpec, ConsumerSpec]:
    """The two consumers that orders works from: of created orders, and of processed payments."""
    return (
        ConsumerSpec(
            stream=ORDERS.name,
            name="order-projection",
            subject=ORDERS_CREATED,
            ack_wait_s=ack_wait_s,
            ack_pending_max=ACK_PENDING_MAX,
        ),
        ConsumerSpec(
            stream=PAYMENTS.name,
            name="payment-projection",
            subject=PAYMENTS_PROCESSED,
            ack_wait_s=ack_wait_s,
            ack_pending_max=ACK_PENDING_MAX,
        ),
    )


def payment_processors(ack_wait_s: float, in_hand_max: int) -> tuple[ConsumerSpec, ConsumerSpec]:
    """The two consumers that payments works from: of created orders, and of cancelled ones."""
    return (
        ConsumerSpec(
            stream=ORDERS.name,
            name="payment-processor",
            subject=ORDERS_CREATED,
            ack_wait_s=ack_wait_s,
            ack_pending_max=in_hand_max * REPLICAS,
        ),
        ConsumerSpec(
            stream=ORDERS.name,
            name="cancellation-processor",
            subject=ORDERS_CANCELLED,
            ack_wait_s=ack_wait_s,
            ack_pending_max=in_hand_max * REPLICAS,
        ),
    )


def order_created_id(order_id: str) -> str:
    """The Nats-Msg-Id of an order's OrderCreated: the same for every attempt to publish it."""
    return f"order-created:{order_id}"


def order_cancelled_id(order_id: str) -> str:
    """The Nats-Msg-Id of an order's OrderCancelled."""
    return f"order-cancelled:{order_id}"


def payment_processed_id(order_id: str, status: PaymentStatus) -> str:
    """The Nats-Msg-Id of an order's PaymentProcessed: one for how the charge ended, one for its being undone."""
    match status:
        case PaymentStatus.PAID | PaymentStatus.DECLINED:
            return f"payment-processed:{order_id}"
        case PaymentStatus.CANCELLED:
            return f"payment-cancelled:{order_id}"
        case PaymentStatus.REFUNDED:
            return f"payment-refunded:{order_id}"


async def ensure(connection: Connection, consumers: tuple[ConsumerSpec, ...], *, replicas: int = 1) -> None:
    """All streams, each kept by so many servers, and these consumers exist as specified when this returns."""
    for stream in (ORDERS, PAYMENTS, DEAD_LETTERS):
        await ensure_stream(connection, replace(stream, replicas=replicas))
    for consumer in consumers:
        await ensure_consumer(connection, consumer)
