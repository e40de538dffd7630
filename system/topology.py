"""The shop's streams, consumers, subjects and message ids: what everybody who talks through the broker must agree on.

Both services ensure both streams, so they may start in any order. These names stay.
"""

from __future__ import annotations

from system.jetstream import Connection, ConsumerSpec, StreamSpec, ensure_consumer, ensure_stream

ORDERS_CREATED = "orders.created"
PAYMENTS_PROCESSED = "payments.processed"

DEDUP_WINDOW_S = 120.0
"""Far above every deadline for a publish, so that a retry always falls into it."""

ORDERS = StreamSpec(name="ORDERS", subject="orders.>", dedup_window_s=DEDUP_WINDOW_S)
PAYMENTS = StreamSpec(name="PAYMENTS", subject="payments.>", dedup_window_s=DEDUP_WINDOW_S)

ACK_PENDING_MAX = 1024
"""Prefetch (256) times four replicas."""


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


def payment_processor(ack_wait_s: float) -> ConsumerSpec:
    """The consumer that payments works from."""
    return ConsumerSpec(
        stream=ORDERS.name,
        name="payment-processor",
        subject=ORDERS_CREATED,
        ack_wait_s=ack_wait_s,
        ack_pending_max=ACK_PENDING_MAX,
    )


def order_created_id(order_id: str) -> str:
    """The Nats-Msg-Id of an order's OrderCreated: the same for every attempt to publish it."""
    return f"order-created:{order_id}"


def payment_processed_id(order_id: str) -> str:
    """The Nats-Msg-Id of an order's PaymentProcessed."""
    return f"payment-processed:{order_id}"


async def ensure(connection: Connection, consumers: tuple[ConsumerSpec, ...]) -> None:
    """Both streams, and these consumers, exist as specified when this returns."""
    for stream in (ORDERS, PAYMENTS):
        await ensure_stream(connection, stream)
    for consumer in consumers:
        await ensure_consumer(connection, consumer)
