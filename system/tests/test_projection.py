"""The two projections: commit first, tell afterwards, and say whose fault it is when nothing can be committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import pytest_asyncio

from system.database import (
    Database,
    DatabaseError,
    DatabaseRowError,
    DatabaseUnknownError,
    Migration,
    open_database,
)
from system.events import OrderCreated, PaymentProcessed, PaymentStatus
from system.metrics import Metrics
from system.orders.catching_up import CatchingUp
from system.orders.projection import OrderProjection, PaymentProjection
from system.orders.recent import RecentOrders
from system.orders.settling import SettleTimes
from system.orders.store import MIGRATIONS, OrderStore
from system.processing import GiveUpError, TryLaterError
from system.settings import PostgresLocation
from system.tests.spans import Spans


def created(order_id: str, *, customer_id: str = "c1") -> OrderCreated:
    """An order."""
    return OrderCreated(
        order_id=order_id, customer_id=customer_id, amount_minor=1250, currency="EUR", created_at_ns=1_000_000_000
    )


def processed(order_id: str, status: PaymentStatus) -> PaymentProcessed:
    """What became of its payment."""
    return PaymentProcessed(
        order_id=order_id,
        status=status,
        payment_id="",
        amount_minor=1250,
        currency="EUR",
        reason="",
        processed_at_ns=1,
    )


@pytest.fixture
def migrations() -> Sequence[Migration]:
    """What `database` holds."""
    return MIGRATIONS


@pytest_asyncio.fixture
async def store(database: Database) -> OrderStore:
    """An empty table."""
    return OrderStore(database)


class FailingDatabase:
    """A database that refuses every write in the same way."""

    is_up = True

    def __init__(self, failure: DatabaseError) -> None:
        self._failure = failure

    async def write(self, *_what: object) -> None:
        """Refuse."""
        raise self._failure


async def test_an_order_is_recent_until_it_is_committed(store: OrderStore) -> None:
    """P7, P9: not a moment less, and no longer."""
    recent = RecentOrders()
    projection = OrderProjection(store, recent, CatchingUp(is_over=True))
    for order_id in ("o1", "o2"):
        recent.expect(created(order_id))
        recent.accept(created(order_id))
    await projection.apply([created("o1")])

    assert recent.accepted("o1") is None
    assert await store.find("o1") is not None
    assert recent.accepted("o2") is not None
    assert await store.find("o2") is None


async def test_what_was_settled_is_counted_and_timed(store: OrderStore, metrics: Metrics) -> None:
    """By status; the time only of orders that were accepted here, and once."""
    times = SettleTimes(metrics)
    projection = PaymentProjection(store, times, metrics)
    times.began("o1", 1_000_000_000)
    await projection.apply(
        [
            processed("o1", PaymentStatus.PAID),
            processed("o1", PaymentStatus.REFUNDED),
            processed("o2", PaymentStatus.DECLINED),
        ]
    )

    text = metrics.rendered().decode()
    for line in (
        'orders_settled_total{status="PAID"} 1.0',
        'orders_settled_total{status="REFUNDED"} 1.0',
        'orders_settled_total{status="DECLINED"} 1.0',
        'orders_settled_total{status="CANCELLED"} 0.0',
        "order_settled_seconds_count 1.0",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (DatabaseError("away"), TryLaterError),
        (DatabaseUnknownError("the connection broke during the commit"), TryLaterError),
        (DatabaseRowError("no such text"), GiveUpError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_an_outage_is_not_the_events_fault_and_a_refused_row_is(
    failure: DatabaseError, answer: type[Exception], metrics: Metrics
) -> None:
    """P9, P14: tried as often as it takes, or buried; nothing is told to be committed, counted or settled."""
    store = OrderStore(cast("Database", FailingDatabase(failure)))
    recent = RecentOrders()
    recent.expect(created("o1"))
    recent.accept(created("o1"))
    times = SettleTimes(metrics)
    times.began("o1", 1)

    with pytest.raises(answer):
        await OrderProjection(store, recent, CatchingUp(is_over=True)).apply([created("o1")])
    with pytest.raises(answer):
        await PaymentProjection(store, times, metrics).apply([processed("o1", PaymentStatus.PAID)])

    assert recent.accepted("o1") is not None
    text = metrics.rendered().decode()
    assert 'orders_settled_total{status="PAID"} 0.0' in text
    assert "order_settled_seconds_count 0.0" in text


async def test_an_event_with_a_text_that_the_database_cannot_hold_is_given_up(
    postgres_url: str, metrics: Metrics
) -> None:
    """P14: PostgreSQL has no NUL in texts. The API takes none, but who knows who else publishes."""
    async with open_database(
        PostgresLocation(url=postgres_url),
        migrations=MIGRATIONS,
        name="orders",
        tracer=Spans().tracer,
        metrics=metrics,
    ) as database:
        store = OrderStore(database)
        projection = OrderProjection(store, RecentOrders(), CatchingUp())
        with pytest.raises(GiveUpError):
            await projection.apply([created("o1"), created("o2", customer_id="a\0b")])
        assert await store.find("o1") is None, "of one batch all is stored or nothing: it is tried again one by one"
        await projection.apply([created("o1")])
        assert await store.find("o1") is not None
