"""The payments table: how the payment of each order ended, once, and whether that was announced.

Promises: what `record` was given is committed and durable when it is done without an error; an order has one row
(`order_id` is the primary key), and whoever records a second outcome changes nothing, but that PAID becomes REFUNDED.
The first to record wins, be it the answer to a charge, a webhook, or another replica.

The row is what keeps an order that comes again away from the provider, however late, and whether the broker delivers
again or somebody publishes it twice. It is not what keeps it from being charged twice at the same time: that is the
provider's idempotency key, which also holds between replicas with a table each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine

import msgspec
from msgspec import structs

from system.database import Database, DatabaseError, Migration, Row, Statement
from system.database.lookup import Lookup, finding
from system.events import PaymentStatus

log = logging.getLogger(__name__)

NOTES_EVERY_S = 0.25
"""Announcements are noted together: a note that a crash costs means one more announcement, which the broker absorbs."""
NOTES_MAX = 2048
"""As many wait at most; then they are written at once."""

# Not `status IN (...)`: SQLite makes a table of the list for every row, and that costs 2 us of the 3.5 of an insert.
_SCHEMA_1_SQLITE = """
CREATE TABLE payments (
    order_id TEXT PRIMARY KEY,
    status TEXT NOT NULL
        CHECK (status = 'PAID' OR status = 'DECLINED' OR status = 'CANCELLED' OR status = 'REFUNDED'),
    charge_id TEXT NOT NULL,
    refund_id TEXT NOT NULL,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at_ns INTEGER NOT NULL,
    announced_at_ns INTEGER
) WITHOUT ROWID;
"""
_SCHEMA_1_POSTGRES = """
CREATE TABLE payments (
    order_id TEXT COLLATE "C" PRIMARY KEY,
    status TEXT NOT NULL
        CHECK (status = 'PAID' OR status = 'DECLINED' OR status = 'CANCELLED' OR status = 'REFUNDED'),
    charge_id TEXT NOT NULL,
    refund_id TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at_ns BIGINT NOT NULL,
    announced_at_ns BIGINT
);
"""

MIGRATIONS = (Migration(sqlite=_SCHEMA_1_SQLITE, postgres=_SCHEMA_1_POSTGRES),)

_RECORD = Statement(
    """
INSERT INTO payments (order_id, status, charge_id, refund_id, amount_minor, currency, reason, decided_at_ns)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (order_id) DO UPDATE SET
    status = excluded.status,
    refund_id = excluded.refund_id,
    reason = excluded.reason,
    decided_at_ns = excluded.decided_at_ns,
    announced_at_ns = NULL
WHERE payments.status = 'PAID' AND excluded.status = 'REFUNDED'
""",
    key=1,
)

# Only of the status that was announced: PAID may have become REFUNDED since.
_NOTE = Statement("UPDATE payments SET announced_at_ns = $3 WHERE order_id = $1 AND status = $2", key=1)


_FIND = finding(
    "SELECT order_id, status, charge_id, refund_id, amount_minor, currency, reason, decided_at_ns, announced_at_ns "
    "FROM payments WHERE order_id IN"
)


class Payment(msgspec.Struct, frozen=True):
    """One row, its fields in the order of the columns.

    charge_id, refund_id: empty if there is none. reason: why it was declined, cancelled or refunded, if that was said.
    decided_at_ns: when this process knew. announced_at_ns: when the broker had acknowledged the announcement, None if
    nobody knows of that.
    """

    order_id: str
    status: str
    charge_id: str
    refund_id: str
    amount_minor: int
    currency: str
    reason: str
    decided_at_ns: int
    announced_at_ns: int | None = None

    @property
    def is_undone(self) -> bool:
        """True if no money of this order is with us any more, or ever will be."""
        return self.status in _UNDONE


_UNDONE = frozenset({PaymentStatus.CANCELLED.value, PaymentStatus.REFUNDED.value})


class PaymentStore:
    """The table, in whichever database it lives. What fails raises `DatabaseError`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows = Lookup(database, _FIND, Payment)
        self._notes: list[Row] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Future[None]] = set()

    @property
    def is_up(self) -> bool:
        """True while the database can be asked."""
        return self._database.is_up

    def find(self, order_id: str) -> Coroutine[None, None, Payment | None]:
        """The row of one order as last committed."""
        return self._rows.find(order_id)

    def record(self, payment: Payment) -> Awaitable[None]:
        """Commit how a payment ended, unless that is recorded already."""
        return self._database.write_soon(_RECORD, (structs.astuple(payment)[:-1],))

    def note_announced(self, payment: Payment) -> None:
        """Note, soon and without a promise, that the announcement of this payment is stored."""
        notes = self._notes
        notes.append((payment.order_id, payment.status, time.time_ns()))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTES_EVERY_S, self._write_notes)
        elif len(notes) >= NOTES_MAX:
            self._timer.cancel()
            self._write_notes()

    async def flush(self, *, within_s: float) -> None:
        """Return when every note so far is written, or has failed, and every question answered; or the time is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._write_notes()
        if under_way := (*self._writing, *self._rows.unanswered):
            await asyncio.wait(under_way, timeout=within_s)

    def _write_notes(self) -> None:
        self._timer = None
        notes, self._notes = self._notes, []
        writing = self._database.write_soon(_NOTE, notes)
        self._writing.add(writing)
        writing.add_done_callback(self._on_written)

    def _on_written(self, writing: asyncio.Future[None]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled() and isinstance(error := writing.exception(), DatabaseError):
            log.warning("announcements were made and could not be noted, some may be made again: %s", error)
