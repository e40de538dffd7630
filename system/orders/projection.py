"""The two batch handlers that keep the orders table true to the streams; `system.processing` commits first, acks after.

An outage of the database is not the events' fault: they come again later, as often as it takes. An event that the
database refuses for what it says is given up, and becomes a dead letter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from system import events
from system.database import DatabaseError, DatabaseRowError
from system.events import OrderCreated, PaymentProcessed, PaymentStatus
from system.jetstream import Delivery
from system.metrics import Metrics
from system.orders.catching_up import CatchingUp
from system.orders.recent import RecentOrders
from system.orders.settling import SettleTimes
from system.orders.store import OrderStore
from system.processing import GiveUpError, TryLaterError


class OrderProjection:
    """Puts every OrderCreated into the table."""

    def __init__(self, store: OrderStore, recent: RecentOrders, catching_up: CatchingUp) -> None:
        self._store = store
        self._recent = recent
        self._catching_up = catching_up

    def read(self, delivery: Delivery) -> OrderCreated:
        """The event; `UndecodableError` if it is none."""
        return events.decode_order_created(delivery.payload)

    def order_id(self, item: OrderCreated) -> str:
        """The order that an event is about."""
        return item.order_id

    async def apply(self, items: Sequence[OrderCreated]) -> None:
        """Commit these; durable when this returns."""
        try:
            with _failures_told():
                await self._store.save_created(items)
        except TryLaterError:
            self._catching_up.not_committed()
            raise
        self._catching_up.committed()
        for order in items:
            self._recent.committed(order.order_id)


class PaymentProjection:
    """Moves orders forward as PaymentProcessed says."""

    def __init__(self, store: OrderStore, settle_times: SettleTimes, metrics: Metrics) -> None:
        self._store = store
        self._settle_times = settle_times
        self._settled = {
            status: metrics.counter("orders_settled", "Payment results committed", label="status", value=status.value)
            for status in PaymentStatus
        }

    def read(self, delivery: Delivery) -> PaymentProcessed:
        """The event; `UndecodableError` if it is none, or says nothing this version knows."""
        return events.decode_payment_processed(delivery.payload)

    def order_id(self, item: PaymentProcessed) -> str:
        """The order that an event is about."""
        return item.order_id

    async def apply(self, items: Sequence[PaymentProcessed]) -> None:
        """Commit these; durable when this returns."""
        with _failures_told():
            await self._store.save_processed(items)
        now_ns = time.time_ns()
        for payment in items:
            self._settled[payment.status].add()
            self._settle_times.settled(payment.order_id, now_ns)


@contextlib.contextmanager
def _failures_told() -> Iterator[None]:
    """Whose fault it is that nothing could be committed: the event's, or the database's."""
    try:
        yield
    except DatabaseRowError as error:
        raise GiveUpError(str(error)) from None
    except DatabaseError as error:
        raise TryLaterError(str(error)) from None
