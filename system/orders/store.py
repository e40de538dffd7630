"""The orders table: a projection of both streams, which only ever moves forward.

Promises: what `save_created` and `save_processed` were given is committed and durable when they return; the events of
one order lead to the same row whatever order they arrive in and however often. A status goes from PENDING to PAID,
DECLINED or CANCELLED, and from PAID to REFUNDED; whoever asks later never sees an earlier one again. Of events that
contradict each other (PAID and DECLINED: the provider says one or the other) the first stays.

The stream stays the source of truth. Table and durable consumers belong together: whoever loses the table deletes the
consumers `order-projection` and `payment-projection`, and the next start fills it again.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Sequence

import msgspec

from system.database import Database, Migration, Statement
from system.database.lookup import Lookup, finding
from system.events import OrderCreated, PaymentProcessed, PaymentStatus

PENDING = "PENDING"
STATUSES = (PENDING, *(status.value for status in PaymentStatus))
UNDONE = frozenset({PaymentStatus.CANCELLED.value, PaymentStatus.REFUNDED.value})

# What only OrderCreated knows is null until it arrives: PaymentProcessed comes from another stream and may be first.
_SCHEMA_1_SQLITE = """
CREATE TABLE orders (
    order_id TEXT PRIMARY KEY,
    customer_id TEXT,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('PENDING', 'PAID', 'DECLINED')),
    created_at_ns INTEGER,
    settled_at_ns INTEGER,
    payment_id TEXT
) WITHOUT ROWID;
"""
_SCHEMA_1_POSTGRES = """
CREATE TABLE orders (
    order_id TEXT COLLATE "C" PRIMARY KEY,
    customer_id TEXT,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT orders_status CHECK (status IN ('PENDING', 'PAID', 'DECLINED')),
    created_at_ns BIGINT,
    settled_at_ns BIGINT,
    payment_id TEXT
);
"""

# SQLite cannot change a CHECK: the table is made anew. With IN it would make a table of the words for every row (2 µs).
_SCHEMA_2_SQLITE = """
CREATE TABLE orders_2 (
    order_id TEXT PRIMARY KEY,
    customer_id TEXT,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    status TEXT NOT NULL CHECK (
        status = 'PENDING' OR status = 'PAID' OR status = 'DECLINED' OR status = 'CANCELLED' OR status = 'REFUNDED'
    ),
    created_at_ns INTEGER,
    settled_at_ns INTEGER,
    payment_id TEXT,
    refund_id TEXT,
    reason TEXT
) WITHOUT ROWID;
INSERT INTO orders_2
SELECT order_id, customer_id, amount_minor, currency, status, created_at_ns, settled_at_ns, payment_id, NULL, NULL
FROM orders;
DROP TABLE orders;
ALTER TABLE orders_2 RENAME TO orders;
"""
_SCHEMA_2_POSTGRES = """
ALTER TABLE orders
    ADD COLUMN refund_id TEXT,
    ADD COLUMN reason TEXT,
    DROP CONSTRAINT orders_status,
    ADD CONSTRAINT orders_status CHECK (status IN ('PENDING', 'PAID', 'DECLINED', 'CANCELLED', 'REFUNDED'));
"""

MIGRATIONS = (
    Migration(sqlite=_SCHEMA_1_SQLITE, postgres=_SCHEMA_1_POSTGRES),
    Migration(sqlite=_SCHEMA_2_SQLITE, postgres=_SCHEMA_2_POSTGRES),
)

_CREATED = Statement(
    """
INSERT INTO orders (order_id, customer_id, amount_minor, currency, status, created_at_ns)
VALUES ($1, $2, $3, $4, 'PENDING', $5)
ON CONFLICT (order_id) DO UPDATE SET
    customer_id = excluded.customer_id,
    amount_minor = excluded.amount_minor,
    currency = excluded.currency,
    created_at_ns = excluded.created_at_ns
WHERE orders.customer_id IS NULL
""",
    key=1,
)

# The last line: REFUNDED overtook the PAID it undoes, and did not know the charge.
_PROCESSED = Statement(
    """
INSERT INTO orders (order_id, amount_minor, currency, status, settled_at_ns, payment_id, refund_id, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (order_id) DO UPDATE SET
    status = CASE WHEN orders.status = 'REFUNDED' THEN orders.status ELSE excluded.status END,
    settled_at_ns = coalesce(orders.settled_at_ns, excluded.settled_at_ns),
    payment_id = coalesce(orders.payment_id, excluded.payment_id),
    refund_id = coalesce(orders.refund_id, excluded.refund_id),
    reason = coalesce(orders.reason, excluded.reason)
WHERE orders.status = 'PENDING'
    OR orders.status = 'PAID' AND excluded.status = 'REFUNDED'
    OR orders.status = 'REFUNDED' AND excluded.status = 'PAID' AND orders.payment_id IS NULL
""",
    key=1,
)

_FIND = finding(
    "SELECT order_id, customer_id, amount_minor, currency, status, created_at_ns, settled_at_ns, payment_id, "
    "refund_id, reason FROM orders WHERE order_id IN"
)


class StoredOrder(msgspec.Struct, frozen=True):
    """One row, its fields in the order of the columns; and what a customer is shown of an order.

    customer_id and created_at_ns are None while only the payment's end is known. settled_at_ns: when it first was
    something else than PENDING here; it stays when the order is refunded later. reason: why it was declined, cancelled
    or refunded, if that was said.
    """

    order_id: str
    customer_id: str | None
    amount_minor: int
    currency: str
    status: str
    created_at_ns: int | None
    settled_at_ns: int | None = None
    payment_id: str | None = None
    refund_id: str | None = None
    reason: str | None = None


class OrderStore:
    """The table, in whichever database it lives. What fails raises `DatabaseError`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows = Lookup(database, _FIND, StoredOrder)

    @property
    def is_up(self) -> bool:
        """True while the database can be asked."""
        return self._database.is_up

    async def save_created(self, orders: Sequence[OrderCreated]) -> None:
        """Commit what these events say."""
        await self._database.write(
            _CREATED,
            [
                (order.order_id, order.customer_id, order.amount_minor, order.currency, order.created_at_ns)
                for order in orders
            ],
        )

    async def save_processed(self, payments: Sequence[PaymentProcessed]) -> None:
        """Commit what these events say."""
        # When it became final for whoever asks us; payments' own clock stands in the event.
        now_ns = time.time_ns()
        await self._database.write(
            _PROCESSED,
            [
                (
                    payment.order_id,
                    payment.amount_minor,
                    payment.currency,
                    payment.status.value,
                    now_ns,
                    payment.payment_id or None,
                    payment.refund_id or None,
                    payment.reason or None,
                )
                for payment in payments
            ],
        )

    def find(self, order_id: str) -> Coroutine[None, None, StoredOrder | None]:
        """The row of one order as last committed."""
        return self._rows.find(order_id)

    async def known(self, order_ids: Sequence[str]) -> set[str]:
        """Those of these orders of which the table holds all that OrderCreated says."""
        rows = await self._rows.find_all(order_ids)
        return {order_id for order_id, order in rows.items() if order.customer_id is not None}
