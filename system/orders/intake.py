"""Taking an order, and taking it back: the same id never means two different orders, and accepted means stored.

Promises: `accept` returns only when OrderCreated is in the stream with exactly this customer, amount and currency;
asked again with the same id and the same order it returns again; with a different order it raises `ConflictError`.
The check does not rest on this process's memory: when the broker says that it had the message before, the stored one
is read. Beyond the broker's dedup window the table answers instead. `cancel` returns only when OrderCancelled is in the
stream, or when the order is undone already.

Does not: decide whether a cancellation meets a charge. That is the provider's to say, and payments asks it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable

import msgspec

from system import events, topology
from system.announcing import Announcer
from system.events import OrderCancelled, OrderCreated, PaymentStatus
from system.jetstream import Connection, PubAck, PublishUnknownError, RequestError, stored_payload
from system.orders.catching_up import CatchingUp
from system.orders.recent import RecentOrders
from system.orders.settling import SettleTimes
from system.orders.store import PENDING, UNDONE, OrderStore, StoredOrder

ACCEPT_WITHIN_S = 5.0


class ConflictError(Exception):
    """There is another order under this id."""


class NoSuchOrderError(Exception):
    """There is no order under this id."""


class NotYetKnownError(Exception):
    """Whether there is an order under this id is not known yet; nothing was published."""


class NothingToCancelError(Exception):
    """The order was declined: no money moved, and none will."""


class NewOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer asks for. amount_minor: hundredths of the currency. is_named: the customer chose the id."""

    order_id: str
    is_named: bool
    customer_id: str
    amount_minor: int
    currency: str

    def is_same_as(self, order: StoredOrder | OrderCreated) -> bool:
        """True if this is that order; a customer not known yet contradicts nothing."""
        return (
            self.amount_minor == order.amount_minor
            and self.currency == order.currency
            and (order.customer_id is None or self.customer_id == order.customer_id)
        )


class Intake:
    """Accepts orders, finds them, and takes their cancellations."""

    def __init__(
        self,
        connection: Connection,
        announcer: Announcer,
        store: OrderStore,
        recent: RecentOrders,
        settle_times: SettleTimes,
        catching_up: CatchingUp,
    ) -> None:
        self._connection = connection
        self._announcer = announcer
        self._store = store
        self._recent = recent
        self._settle_times = settle_times
        self._catching_up = catching_up

    async def accept(self, new: NewOrder) -> str:
        """Store an order in the stream, once; returns its status.

        Raises `ConflictError`, `NotYetKnownError`, `TooManyRecentError`, `PublishRefusedError`,
        `PublishUnavailableError` or `DatabaseError` if this call certainly did not store it, and `PublishUnknownError`
        if nobody can tell.
        """
        known = await self.find(new.order_id)
        if known is not None:
            if not new.is_same_as(known):
                raise ConflictError
            return known.status
        if new.is_named and not self._catching_up.is_over:
            raise NotYetKnownError("orders from before the start of this service are still being read")
        order = OrderCreated(
            order_id=new.order_id,
            customer_id=new.customer_id,
            amount_minor=new.amount_minor,
            currency=new.currency,
            created_at_ns=time.time_ns(),
        )
        self._recent.expect(order)
        self._settle_times.began(order.order_id, order.created_at_ns)
        stored: OrderCreated | None = None
        try:
            ack = await self.announce(order)
            stored = await self._as_stored(order, ack) if ack.duplicate else order
        finally:
            if stored is None:
                self._recent.abandon(order.order_id)
            else:
                self._recent.accept(stored)
        if stored is not order and not new.is_same_as(stored):
            raise ConflictError
        return PENDING

    def announce(self, order: OrderCreated) -> Awaitable[PubAck]:
        """Publish OrderCreated; await the server's ack."""
        return self._announcer.announce(
            subject=topology.ORDERS_CREATED,
            payload=events.encode_order_created(order),
            message_id=topology.order_created_id(order.order_id),
            order_id=order.order_id,
            deadline_s=ACCEPT_WITHIN_S,
        )

    async def cancel(self, order_id: str, reason: str) -> StoredOrder:
        """Store in the stream that an order is to be undone, unless it is; returns the order as it was before.

        Raises `NoSuchOrderError`, `NothingToCancelError`, `PublishRefusedError`, `PublishUnavailableError` or
        `DatabaseError` if this call certainly stored nothing, and `PublishUnknownError` if nobody can tell.
        """
        order = await self.find(order_id)
        if order is None:
            raise NoSuchOrderError
        if order.status == PaymentStatus.DECLINED.value:
            raise NothingToCancelError
        if order.status not in UNDONE:
            event = OrderCancelled(
                order_id=order_id,
                reason=reason,
                cancelled_at_ns=time.time_ns(),
                amount_minor=order.amount_minor,
                currency=order.currency,
            )
            await self._announcer.announce(
                subject=topology.ORDERS_CANCELLED,
                payload=events.encode_order_cancelled(event),
                message_id=topology.order_cancelled_id(order_id),
                order_id=order_id,
                deadline_s=ACCEPT_WITHIN_S,
            )
        return order

    async def find(self, order_id: str) -> StoredOrder | None:
        """The order as a customer sees it now; None if there is none."""
        # Before the table is asked: it may be committed, and forgotten here, while the question is on its way.
        recent = self._recent.accepted(order_id)
        stored = await self._store.find(order_id)
        if stored is not None and stored.customer_id is not None:
            return stored
        if recent is None:
            return stored
        created = StoredOrder(
            order_id, recent.customer_id, recent.amount_minor, recent.currency, PENDING, recent.created_at_ns
        )
        if stored is None:
            return created
        return msgspec.structs.replace(
            stored,
            customer_id=recent.customer_id,
            amount_minor=recent.amount_minor,
            currency=recent.currency,
            created_at_ns=recent.created_at_ns,
        )

    async def _as_stored(self, order: OrderCreated, ack: PubAck) -> OrderCreated:
        """What the stream holds under this id: whatever came first."""
        try:
            return events.decode_order_created(await stored_payload(self._connection, ack.stream, ack.sequence))
        except (RequestError, events.UndecodableError) as error:
            raise PublishUnknownError(
                f"{order.order_id} was published before, and that cannot be read: {error}"
            ) from None
