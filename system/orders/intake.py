"""Taking an order: the same id never means two different orders, and accepted means stored in the stream.

Promises: `accept` returns only when OrderCreated is in the stream with exactly this customer, amount and currency;
asked again with the same id and the same order it returns again; with a different order it raises `ConflictError`.
The check does not rest on this process's memory: when the broker says that it had the message before, the stored one
is read. Beyond the broker's dedup window the table answers instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from system import events, topology
from system.announcing import Announcer
from system.events import OrderCreated
from system.jetstream import Connection, PubAck, PublishUnknownError, RequestError, stored_payload
from system.orders.recent import RecentOrders
from system.orders.store import PENDING, OrderStore, StoredOrder

ACCEPT_WITHIN_S = 5.0


class ConflictError(Exception):
    """There is another order under this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrder:
    """What a customer asks for. amount_minor: hundredths of the currency."""

    order_id: str
    customer_id: str
    amount_minor: int
    currency: str

    def is_same_as(self, order: StoredOrder | OrderCreated) -> bool:
        """True if this is that order; a customer not known yet contradicts nothing."""
        return (self.amount_minor, self.currency) == (order.amount_minor, order.currency) and (
            order.customer_id is None or self.customer_id == order.customer_id
        )


class Intake:
    """Accepts orders and finds them."""

    def __init__(self, connection: Connection, announcer: Announcer, store: OrderStore, recent: RecentOrders) -> None:
        self._connection = connection
        self._announcer = announcer
        self._store = store
        self._recent = recent

    async def accept(self, new: NewOrder) -> None:
        """Store an order in the stream, once.

        Raises `ConflictError`, `TooManyRecentError` or `PublishRefusedError` if this call certainly did not store it,
        and `PublishUnknownError` if nobody can tell.
        """
        known = self.find(new.order_id)
        if known is not None:
            if not new.is_same_as(known):
                raise ConflictError
            return
        order = OrderCreated(
            order_id=new.order_id,
            customer_id=new.customer_id,
            amount_minor=new.amount_minor,
            currency=new.currency,
            created_at_ns=time.time_ns(),
        )
        self._recent.expect(order)
        stored: OrderCreated | None = None
        try:
            ack = await self.announce(order)
            stored = await self._as_stored(order, ack)
            if not new.is_same_as(stored):
                raise ConflictError
        finally:
            if stored is None:
                self._recent.abandon(order.order_id)
            else:
                self._recent.accept(stored)

    async def announce(self, order: OrderCreated) -> PubAck:
        """Publish OrderCreated and wait for the server's ack."""
        return await self._announcer.announce(
            subject=topology.ORDERS_CREATED,
            payload=events.encode_order_created(order),
            message_id=topology.order_created_id(order.order_id),
            order_id=order.order_id,
            deadline_s=ACCEPT_WITHIN_S,
        )

    def find(self, order_id: str) -> StoredOrder | None:
        """The order as a customer sees it now; None if there is none."""
        stored = self._store.find(order_id)
        if stored is not None and stored.customer_id is not None:
            return stored
        recent = self._recent.accepted(order_id)
        if recent is None:
            return stored
        return StoredOrder(
            order_id=order_id,
            customer_id=recent.customer_id,
            amount_minor=recent.amount_minor,
            currency=recent.currency,
            status=stored.status if stored is not None else PENDING,
            created_at_ns=recent.created_at_ns,
            settled_at_ns=stored.settled_at_ns if stored is not None else None,
            payment_id=stored.payment_id if stored is not None else None,
        )

    async def _as_stored(self, order: OrderCreated, ack: PubAck) -> OrderCreated:
        """What the stream holds: this very order, or, if the server had the id before, whatever came first."""
        if not ack.duplicate:
            return order
        try:
            return events.decode_order_created(await stored_payload(self._connection, ack.stream, ack.sequence))
        except (RequestError, events.UndecodableError) as error:
            raise PublishUnknownError(
                f"{order.order_id} was published before, and that cannot be read: {error}"
            ) from None
