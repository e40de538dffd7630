"""The orders table in SQLite: a projection of both streams, written by one writer in groups.

Promises: `save` returns only after the commit that holds the change, and that commit is fsynced; what waits together
is committed together; a state goes forward only, PENDING to PAID or DECLINED, whatever order the events arrive in and
however often; reads never wait for the writer (WAL).

The stream stays the source of truth. Table and durable consumers belong together: whoever loses the table deletes the
consumers `order-projection` and `payment-projection`, and the next start fills it again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from system.errors import StartError
from system.events import OrderCreated, PaymentProcessed

SCHEMA_VERSION = 1
GATHER_S = 0.005
"""How long a change waits for company: an fsync and two wake-ups of a thread cost the same for one as for fifty."""
BUSY_WITHIN_MS = 2_000
"""How long a commit waits for a lock that somebody else holds on the file."""

PENDING = "PENDING"

# WAL with synchronous=FULL: every commit is fsynced, because the broker will not deliver again what was acked after it.
_SETUP = f"""
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA busy_timeout={BUSY_WITHIN_MS};
"""

# What only OrderCreated knows is null until it arrives: PaymentProcessed comes from another stream and may be first.
_SCHEMA = f"""
BEGIN;
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
PRAGMA user_version={SCHEMA_VERSION};
COMMIT;
"""

_CREATED = """
INSERT INTO orders (order_id, customer_id, amount_minor, currency, status, created_at_ns)
VALUES (?, ?, ?, ?, 'PENDING', ?)
ON CONFLICT (order_id) DO UPDATE SET
    customer_id = excluded.customer_id,
    amount_minor = excluded.amount_minor,
    currency = excluded.currency,
    created_at_ns = excluded.created_at_ns
WHERE orders.customer_id IS NULL
"""

_PROCESSED = """
INSERT INTO orders (order_id, amount_minor, currency, status, settled_at_ns, payment_id)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (order_id) DO UPDATE SET
    status = excluded.status,
    settled_at_ns = excluded.settled_at_ns,
    payment_id = excluded.payment_id
WHERE orders.status = 'PENDING'
"""

_FIND = """
SELECT order_id, customer_id, amount_minor, currency, status, created_at_ns, settled_at_ns, payment_id
FROM orders WHERE order_id = ?
"""

Change = OrderCreated | PaymentProcessed


class StoreOpenError(StartError):
    """The database cannot be used."""


class StoreError(Exception):
    """A change could not be committed; it is not stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOrder:
    """One row. customer_id and created_at_ns are None while only the payment's end is known."""

    order_id: str
    customer_id: str | None
    amount_minor: int
    currency: str
    status: str
    created_at_ns: int | None
    settled_at_ns: int | None
    payment_id: str | None


class OrderStore:
    """The table, its one writer and its one reader, from `async with` until its end."""

    def __init__(self, path: Path) -> None:
        try:
            self._writes = _open(path)
            self._reads = sqlite3.connect(path, isolation_level=None)
            self._reads.execute("PRAGMA query_only=1")
        except sqlite3.Error as error:
            raise StoreOpenError(
                f"the database {path} cannot be used: {error}; set ORDERS_DB to another file"
            ) from None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="orders-writer")
        self._tasks = asyncio.TaskGroup()
        self._waiting: list[tuple[Change, asyncio.Future[None]]] = []
        self._is_writing = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(None, None, None)
        self._thread.shutdown()
        self._writes.close()
        self._reads.close()

    async def save(self, change: Change) -> None:
        """Commit one change, together with whatever else waits; `StoreError` if it is not stored."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, committed))
        if not self._is_writing:
            self._is_writing = True
            self._tasks.create_task(self._write_all())
        await committed

    def find(self, order_id: str) -> StoredOrder | None:
        """The row of one order as last committed."""
        row = self._reads.execute(_FIND, (order_id,)).fetchone()
        if row is None:
            return None
        order_id, customer_id, amount_minor, currency, status, created_at_ns, settled_at_ns, payment_id = row
        return StoredOrder(
            order_id=order_id,
            customer_id=customer_id,
            amount_minor=amount_minor,
            currency=currency,
            status=status,
            created_at_ns=created_at_ns,
            settled_at_ns=settled_at_ns,
            payment_id=payment_id,
        )

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            group, self._waiting = self._waiting, []
            failure: StoreError | None = None
            try:
                await loop.run_in_executor(self._thread, _commit, self._writes, [change for change, _ in group])
            except sqlite3.Error as error:
                failure = StoreError(f"{len(group)} changes could not be committed: {error}")
            for _, committed in group:
                if committed.done():
                    continue  # whoever waited was cancelled
                if failure is None:
                    committed.set_result(None)
                else:
                    committed.set_exception(failure)
        self._is_writing = False


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.executescript(_SETUP)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(_SCHEMA)
    elif version != SCHEMA_VERSION:
        raise StoreOpenError(f"the database {path} has schema {version}, this version needs {SCHEMA_VERSION}")
    return connection


def _commit(connection: sqlite3.Connection, changes: list[Change]) -> None:
    """One transaction for all; runs in the writer's thread."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for change in changes:
            connection.execute(*_statement(change))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _statement(change: Change) -> tuple[str, tuple[str | int | None, ...]]:
    match change:
        case OrderCreated():
            return _CREATED, (
                change.order_id,
                change.customer_id,
                change.amount_minor,
                change.currency,
                change.created_at_ns,
            )
        case PaymentProcessed():
            return _PROCESSED, (
                change.order_id,
                change.amount_minor,
                change.currency,
                change.status.value,
                # When it became final for whoever asks us; payments' own clock stands in the event.
                time.time_ns(),
                change.payment_id or None,
            )
