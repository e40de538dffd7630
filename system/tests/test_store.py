"""The orders table: forward only, in any order, however often, on both databases; and the orders not in it yet."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count, permutations
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from system.database import Database, DatabaseError, Migration, Statement, open_database
from system.events import OrderCreated, PaymentProcessed, PaymentStatus
from system.metrics import Metrics
from system.orders.recent import RecentOrders, TooManyRecentError
from system.orders.settling import SettleTimes
from system.orders.store import MIGRATIONS, OrderStore, StoredOrder
from system.settings import SqliteLocation
from system.tests.spans import Spans

CANCELLED, DECLINED, PAID, REFUNDED = (
    PaymentStatus.CANCELLED,
    PaymentStatus.DECLINED,
    PaymentStatus.PAID,
    PaymentStatus.REFUNDED,
)
REASONS = {CANCELLED: "regretted", DECLINED: "no money", PAID: "", REFUNDED: "regretted"}
SETTLED_AT_NS = 8

Event = OrderCreated | PaymentStatus
"""What happened to an order: it was created, or its payment came to this."""

NUMBERS = count()


def created(order_id: str = "o1") -> OrderCreated:
    """An order."""
    return OrderCreated(order_id=order_id, customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)


def processed(status: PaymentStatus, order_id: str = "o1", *, knows_charge: bool = True) -> PaymentProcessed:
    """What became of its payment. knows_charge: False for a refund that does not say what it refunds."""
    was_charged = status is PAID or (status is REFUNDED and knows_charge)
    return PaymentProcessed(
        order_id=order_id,
        status=status,
        payment_id="ch_1" if was_charged else "",
        amount_minor=1250,
        currency="EUR",
        reason=REASONS[status],
        processed_at_ns=8,
        refund_id="re_1" if status is REFUNDED else "",
    )


CREATED = StoredOrder("o1", "c1", 1250, "EUR", "PENDING", 7)
ENDS = {
    (): CREATED,
    (PAID,): replace(CREATED, status="PAID", settled_at_ns=SETTLED_AT_NS, payment_id="ch_1"),
    (DECLINED,): replace(CREATED, status="DECLINED", settled_at_ns=SETTLED_AT_NS, reason="no money"),
    (CANCELLED,): replace(CREATED, status="CANCELLED", settled_at_ns=SETTLED_AT_NS, reason="regretted"),
    (PAID, REFUNDED): replace(
        CREATED,
        status="REFUNDED",
        settled_at_ns=SETTLED_AT_NS,
        payment_id="ch_1",
        refund_id="re_1",
        reason="regretted",
    ),
}
"""Everything that can become of a payment, and how the order then looks."""


async def save(store: OrderStore, *events: OrderCreated | PaymentProcessed) -> None:
    """Commit these, one after the other."""
    for event in events:
        if isinstance(event, OrderCreated):
            await store.save_created([event])
        else:
            await store.save_processed([event])


async def found(store: OrderStore, order_id: str) -> StoredOrder | None:
    """The order, named o1, with the moment it was settled replaced by the one that `ENDS` has."""
    order = await store.find(order_id)
    if order is None:
        return None
    order = replace(order, order_id="o1")
    return order if order.settled_at_ns is None else replace(order, settled_at_ns=SETTLED_AT_NS)


@pytest.fixture
def migrations() -> Sequence[Migration]:
    """What `database` holds."""
    return MIGRATIONS


@pytest_asyncio.fixture
async def store(database: Database) -> OrderStore:
    """An empty table."""
    return OrderStore(database)


@pytest.mark.parametrize("payments", ENDS, ids=lambda payments: "-".join(each.value for each in payments) or "PENDING")
async def test_every_order_of_arrival_and_any_repetition_leads_to_the_same_row(
    store: OrderStore, payments: tuple[PaymentStatus, ...]
) -> None:
    """P8: overtaken, redelivered, twice in one batch: each sequence of twice every event ends as the story does."""
    events = ("created", *payments)
    arrivals = sorted(set(permutations(events * 2)), key=str)
    order_ids = [f"{'-'.join(map(str, payments))}-{number}" for number in range(len(arrivals))]

    for step in range(len(events) * 2):
        now = [(order_id, arrival[step]) for order_id, arrival in zip(order_ids, arrivals, strict=True)]
        await store.save_created([created(order_id) for order_id, event in now if not isinstance(event, PaymentStatus)])
        await store.save_processed([processed(event, key) for key, event in now if isinstance(event, PaymentStatus)])

    for order_id, arrival in zip(order_ids, arrivals, strict=True):
        assert await found(store, order_id) == ENDS[payments], arrival


class Model:
    """What a row should be, told without SQL."""

    def __init__(self) -> None:
        self.row: StoredOrder | None = None

    def save(self, event: OrderCreated | PaymentProcessed) -> None:
        """Take in one event."""
        row = self.row or StoredOrder("o1", None, event.amount_minor, event.currency, "PENDING", None)
        if isinstance(event, OrderCreated):
            self.row = replace(row, customer_id=event.customer_id, created_at_ns=event.created_at_ns)
            return
        goes_on = row.status == "PENDING" or (row.status, event.status) == ("PAID", REFUNDED)
        tells_the_charge = (row.status, event.status) == ("REFUNDED", PAID)
        if goes_on or tells_the_charge:
            row = replace(
                row,
                status=event.status.value if goes_on else row.status,
                settled_at_ns=SETTLED_AT_NS,
                payment_id=row.payment_id or event.payment_id or None,
                refund_id=row.refund_id or event.refund_id or None,
                reason=row.reason or event.reason or None,
            )
        self.row = row


@given(
    batches=st.lists(
        st.lists(st.just("created") | st.tuples(st.sampled_from(PaymentStatus), st.booleans()), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_even_events_that_contradict_each_other_never_move_an_order_back(
    store: OrderStore, batches: Sequence[Sequence[str | tuple[PaymentStatus, bool]]]
) -> None:
    """P8: whatever arrives, in whatever batches: the table does what the model does, and every step is a legal one."""
    legal = {("PENDING", status.value) for status in PaymentStatus} | {("PAID", "REFUNDED")}
    order_id = f"any-{next(NUMBERS)}"
    model = Model()
    before = "PENDING"
    for batch in batches:
        creations = [created(order_id) for event in batch if isinstance(event, str)]
        payments = [
            processed(event[0], order_id, knows_charge=event[1]) for event in batch if not isinstance(event, str)
        ]
        if creations:
            await store.save_created(creations)
        if payments:
            await store.save_processed(payments)
        for creation in creations:
            model.save(creation)
        for payment in payments:
            model.save(payment)

        row = await found(store, order_id)
        assert row == model.row
        assert row is not None
        assert row.status == before or (before, row.status) in legal | {("PENDING", "REFUNDED")}
        before = row.status


async def test_an_order_is_settled_when_it_first_was_and_stays_so(store: OrderStore) -> None:
    """By our own clock, at the commit; a refund weeks later changes the status and not that moment."""
    before_ns = time.time_ns()
    await save(store, created(), processed(PAID))
    paid = await store.find("o1")
    after_ns = time.time_ns()
    await save(store, processed(REFUNDED))
    refunded = await store.find("o1")

    assert paid is not None
    assert refunded is not None
    assert paid.settled_at_ns is not None
    assert before_ns <= paid.settled_at_ns <= after_ns
    assert (refunded.status, refunded.settled_at_ns) == ("REFUNDED", paid.settled_at_ns)


async def test_a_payment_before_its_order_is_an_order_half_known(store: OrderStore) -> None:
    """It is there, settled, with nobody's name on it yet."""
    await save(store, processed(DECLINED))
    order = await store.find("o1")

    assert order is not None
    assert (order.status, order.customer_id, order.created_at_ns, order.payment_id) == ("DECLINED", None, None, None)
    assert await store.find("o2") is None


async def test_questions_that_come_together_are_answered_each_with_its_own_order(store: OrderStore) -> None:
    """Known and unknown, more than one statement asks for, and the same one twice."""
    order_ids = [f"together-{number}" for number in range(150)]
    await store.save_created([created(order_id) for order_id in order_ids[::2]])

    answers = await asyncio.gather(*(store.find(order_id) for order_id in (*order_ids, *order_ids)))

    assert [answer and answer.order_id for answer in answers] == [
        order_id if number % 2 == 0 else None for _ in range(2) for number, order_id in enumerate(order_ids)
    ]


class BrokenDatabase:
    """A database that reads slowly, and only to say that it cannot."""

    is_up = True

    async def read(self, statement: Statement, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Wait a turn, and fail."""
        await asyncio.sleep(0)
        raise DatabaseError(f"away, asked for {len(parameters)} by {statement}")


async def test_a_question_that_cannot_be_answered_fails_for_all_who_asked_with_it() -> None:
    """Nobody waits for ever; and the next one asks anew."""
    store = OrderStore(cast("Database", BrokenDatabase()))
    for _ in range(2):
        answers = await asyncio.gather(*(store.find(f"o{n}") for n in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [DatabaseError] * 3


async def test_whoever_is_cancelled_leaves_nobody_else_waiting(store: OrderStore) -> None:
    """Everybody else is answered."""
    first, second, third = (asyncio.create_task(store.find("o1")) for _ in range(3))
    await asyncio.sleep(0)
    third.cancel()
    first.cancel()
    done = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(each) for each in done] == [asyncio.CancelledError, type(None), asyncio.CancelledError]
    assert await store.find("o1") is None


async def test_which_orders_are_known_can_be_asked_for_many_at_once(store: OrderStore) -> None:
    """Those that are in the table with all there is to know, and no others."""
    order_ids = [f"many-{number}" for number in range(250)]
    await store.save_created([created(order_id) for order_id in order_ids[:120]])
    await save(store, processed(PAID, "many-249"))

    assert await store.known(order_ids) == set(order_ids[:120])
    assert await store.known([]) == set()


def opened(path: Path, metrics: Metrics) -> AbstractAsyncContextManager[Database]:
    """The table in this file."""
    location = SqliteLocation(path=path)
    return open_database(location, migrations=MIGRATIONS, name="orders", tracer=Spans().tracer, metrics=metrics)


async def test_a_database_of_the_first_version_is_opened_with_its_orders(metrics: Metrics, tmp_path: Path) -> None:
    """The file that an older version of this service left: nothing is lost, and the new states fit in."""
    path = tmp_path / "orders.db"
    with sqlite3.connect(path) as old:
        old.executescript(
            """
            PRAGMA journal_mode=WAL;
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
            PRAGMA user_version=1;
            INSERT INTO orders VALUES ('o1', 'c1', 1250, 'EUR', 'PAID', 7, 8, 'ch_1');
            INSERT INTO orders VALUES ('o2', NULL, 113, 'EUR', 'DECLINED', NULL, 9, NULL);
            COMMIT;
            """
        )
    old.close()

    for _ in range(2):  # the second time there is nothing left to do
        async with opened(path, metrics) as database:
            store = OrderStore(database)
            assert await store.find("o1") == ENDS[PAID,]
            assert await store.find("o2") == StoredOrder("o2", None, 113, "EUR", "DECLINED", None, 9)
    async with opened(path, metrics) as database:
        store = OrderStore(database)
        await save(store, processed(REFUNDED), processed(CANCELLED, "o3"))
        assert await found(store, "o1") == ENDS[PAID, REFUNDED]


def test_an_order_is_recent_from_its_acceptance_to_its_commit() -> None:
    """Not before, not after."""
    recent = RecentOrders()
    recent.expect(created())
    assert recent.accepted("o1") is None
    recent.accept(created())
    assert recent.accepted("o1") == created()
    recent.committed("o1")
    assert recent.accepted("o1") is None


def test_a_projection_faster_than_the_acceptance_leaves_nothing_behind() -> None:
    """The table has it already: nothing is kept."""
    recent = RecentOrders()
    recent.expect(created())
    recent.committed("o1")
    recent.accept(created())

    assert recent.accepted("o1") is None


def test_a_publish_that_fails_does_not_take_back_one_that_succeeded() -> None:
    """Two requests with one key: the accepted one counts."""
    recent = RecentOrders()
    recent.expect(created())
    recent.expect(created())
    recent.accept(created())
    recent.abandon("o1")

    assert recent.accepted("o1") == created()


def test_there_is_a_bound_to_what_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection that stands still stops the intake instead of filling the memory."""
    monkeypatch.setattr("system.orders.recent.RECENT_MAX", 1)
    recent = RecentOrders()
    recent.expect(created())

    with pytest.raises(TooManyRecentError):
        recent.expect(created("o2"))


async def test_what_another_replica_committed_is_recent_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells us of it: the table is asked, and what it does not hold yet is kept and asked for later again."""
    monkeypatch.setattr("system.orders.recent.ASK_AFTER_S", 0.0)
    recent = RecentOrders()
    asked: list[Sequence[str]] = []
    in_table = {"o1"}

    async def which_are(order_ids: Sequence[str]) -> set[str]:
        asked.append(order_ids)
        return in_table & set(order_ids)

    for order_id in ("o1", "o2", "o3"):
        recent.expect(created(order_id))
    recent.accept(created("o1"))
    recent.accept(created("o2"))
    await recent.forget_once(which_are)
    in_table.add("o2")
    await recent.forget_once(which_are)
    await recent.forget_once(which_are)

    assert asked == [["o1", "o2"], ["o2"]], "o3 is still being published, and then nobody is left to ask for"
    assert recent.accepted("o1") is None
    assert recent.accepted("o2") is None


async def test_who_was_accepted_just_now_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single replica commits everything itself, long before anybody would ask."""
    recent = RecentOrders()
    recent.expect(created())
    recent.accept(created())

    async def which_are(order_ids: Sequence[str]) -> set[str]:
        raise AssertionError(order_ids)

    await recent.forget_once(which_are)
    assert recent.accepted("o1") == created()


async def test_a_database_that_is_away_makes_nobody_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for again when it is back."""
    monkeypatch.setattr("system.orders.recent.ASK_AFTER_S", 0.0)
    recent = RecentOrders()
    recent.expect(created())
    recent.accept(created())

    async def which_are(order_ids: Sequence[str]) -> set[str]:
        raise DatabaseError(f"away, asked for {order_ids}")

    await recent.forget_once(which_are)
    assert recent.accepted("o1") == created()


def test_an_order_counts_once_as_settled_and_what_never_settles_is_forgotten(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refund is not a second settling; an order of another replica is not measured; the memory is bounded."""
    monkeypatch.setattr("system.orders.settling.REMEMBERED_MAX", 2)
    times = SettleTimes(metrics)
    for number in range(4):
        times.began(f"o{number}", 1_000_000_000)
    for order_id in ("o0", "o1", "o2", "o3", "o3", "somebody-else's"):
        times.settled(order_id, 1_250_000_000)

    text = metrics.rendered().decode()
    assert "order_settled_seconds_count 2.0" in text
    assert "order_settled_seconds_sum 0.5" in text
