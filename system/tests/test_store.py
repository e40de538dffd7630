"""The orders table: forward only, in any order, however often; and the orders that are not in it yet."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from system.events import OrderCreated, PaymentProcessed, PaymentStatus
from system.orders.recent import RecentOrders, TooManyRecentError
from system.orders.store import Change, OrderStore, StoredOrder, StoreError, StoreOpenError

CREATED = OrderCreated(order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)


def processed(status: PaymentStatus, *, at_ns: int = 8) -> PaymentProcessed:
    """The end of o1's payment."""
    return PaymentProcessed(
        order_id="o1",
        status=status,
        payment_id="ch_1" if status is PaymentStatus.PAID else "",
        amount_minor=1250,
        currency="EUR",
        reason="",
        processed_at_ns=at_ns,
    )


PAID = StoredOrder(
    order_id="o1",
    customer_id="c1",
    amount_minor=1250,
    currency="EUR",
    status="PAID",
    created_at_ns=7,
    settled_at_ns=8,
    payment_id="ch_1",
)


def settled_then(store: OrderStore) -> StoredOrder | None:
    """The order, with the moment it was committed replaced by the one that `PAID` has."""
    found = store.find("o1")
    return found if found is None or found.settled_at_ns is None else replace(found, settled_at_ns=PAID.settled_at_ns)


async def test_events_in_any_order_and_number_lead_to_the_same_row(tmp_path: Path) -> None:
    """Redelivered, overtaken, repeated: PAID in the end, by the first payment that said so."""
    changes: tuple[Change, ...] = (CREATED, CREATED, processed(PaymentStatus.PAID), processed(PaymentStatus.PAID))
    for number, order in enumerate(set(permutations(changes))):
        async with OrderStore(tmp_path / f"{number}.db") as store:
            for change in order:
                await store.save(change)
            assert settled_then(store) == PAID


async def test_a_state_never_goes_back(tmp_path: Path) -> None:
    """What was settled stays as it was settled, whatever comes later."""
    async with OrderStore(tmp_path / "orders.db") as store:
        before_ns = time.time_ns()
        for change in (CREATED, processed(PaymentStatus.PAID)):
            await store.save(change)
        first = store.find("o1")
        for change in (processed(PaymentStatus.DECLINED, at_ns=9), CREATED):
            await store.save(change)

        assert store.find("o1") == first
        assert settled_then(store) == PAID
        assert first is not None
        assert first.settled_at_ns is not None
        assert before_ns <= first.settled_at_ns <= time.time_ns(), "it is final when it is committed, by our own clock"


async def test_a_payment_before_its_order_is_an_order_half_known(tmp_path: Path) -> None:
    """It is there, settled, with nobody's name on it yet."""
    async with OrderStore(tmp_path / "orders.db") as store:
        await store.save(processed(PaymentStatus.DECLINED))
        found = store.find("o1")

    assert found is not None
    assert (found.status, found.customer_id, found.created_at_ns, found.payment_id) == ("DECLINED", None, None, None)


async def test_changes_that_wait_together_are_committed_together(tmp_path: Path) -> None:
    """A thousand changes, far fewer commits, and all of them on disk afterwards."""
    path = tmp_path / "orders.db"
    async with OrderStore(path) as store:
        await asyncio.gather(
            *(
                store.save(
                    OrderCreated(order_id=f"o{n}", customer_id="c", amount_minor=1, currency="EUR", created_at_ns=n)
                )
                for n in range(1000)
            )
        )
    with sqlite3.connect(path) as reader:
        (rows,) = reader.execute("SELECT count(*) FROM orders").fetchone()

    assert rows == 1000


async def test_a_commit_that_fails_is_an_error_and_not_stored(tmp_path: Path) -> None:
    """While somebody else holds the file's lock nothing is stored, and later it can be."""
    path = tmp_path / "orders.db"
    async with OrderStore(path) as store:
        store._writes.execute("PRAGMA busy_timeout=10")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError):
            await store.save(CREATED)
        other.execute("ROLLBACK")
        other.close()
        assert store.find("o1") is None

        await store.save(CREATED)
        assert store.find("o1") is not None


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    """One sentence that names the file."""
    path = tmp_path / "orders.db"
    path.write_bytes(b"this is a letter, not a database" * 100)

    with pytest.raises(StoreOpenError, match=r"orders\.db cannot be used"):
        OrderStore(path)


def test_an_order_is_recent_from_its_acceptance_to_its_commit() -> None:
    """Not before, not after."""
    recent = RecentOrders()
    recent.expect(CREATED)
    assert recent.accepted("o1") is None
    recent.accept(CREATED)
    assert recent.accepted("o1") == CREATED
    recent.committed("o1")
    assert recent.accepted("o1") is None


def test_a_projection_faster_than_the_acceptance_leaves_nothing_behind() -> None:
    """The table has it already: nothing is kept."""
    recent = RecentOrders()
    recent.expect(CREATED)
    recent.committed("o1")
    recent.accept(CREATED)

    assert recent.accepted("o1") is None


def test_a_publish_that_fails_does_not_take_back_one_that_succeeded() -> None:
    """Two requests with one key: the accepted one counts."""
    recent = RecentOrders()
    recent.expect(CREATED)
    recent.expect(CREATED)
    recent.accept(CREATED)
    recent.abandon("o1")

    assert recent.accepted("o1") == CREATED


def test_there_is_a_bound_to_what_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection that stands still stops the intake instead of filling the memory."""
    monkeypatch.setattr("system.orders.recent.RECENT_MAX", 1)
    recent = RecentOrders()
    recent.expect(CREATED)

    with pytest.raises(TooManyRecentError):
        recent.expect(OrderCreated(order_id="o2", customer_id="c", amount_minor=1, currency="EUR", created_at_ns=1))
