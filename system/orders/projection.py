"""The two handlers that keep the orders table true to the streams: commit first, ack after."""

from __future__ import annotations

from system import events, telemetry
from system.events import OrderCreated, PaymentProcessed
from system.jetstream import Delivery
from system.metrics import Metrics
from system.orders.recent import RecentOrders
from system.orders.store import OrderStore


class OrderProjection:
    """Puts every OrderCreated into the table."""

    def __init__(self, store: OrderStore, recent: RecentOrders) -> None:
        self._store = store
        self._recent = recent

    async def handle(self, delivery: Delivery) -> None:
        """Commit one order, then ack."""
        order = self.read(delivery)
        await self._store.save(order)
        self._recent.committed(order.order_id)
        await delivery.ack()

    def read(self, delivery: Delivery) -> OrderCreated:
        """The event; `UndecodableError` if it is none."""
        order = events.decode_order_created(delivery.payload)
        telemetry.about_order(order.order_id)
        return order


class PaymentProjection:
    """Moves orders forward as PaymentProcessed says."""

    def __init__(self, store: OrderStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    async def handle(self, delivery: Delivery) -> None:
        """Commit one payment's end, then ack."""
        payment = self.read(delivery)
        await self._store.save(payment)
        self._metrics.counter(
            "orders_settled", "Payment results committed", label="status", value=payment.status.value
        ).add()
        await delivery.ack()

    def read(self, delivery: Delivery) -> PaymentProcessed:
        """The event; `UndecodableError` if it is none, or says nothing this version knows."""
        payment = events.decode_payment_processed(delivery.payload)
        telemetry.about_order(payment.order_id)
        return payment
