"""Taking back an order, as far as orders goes: what is stored in the stream, and what is not (P13 begins here)."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from system import events, topology
from system.announcing import Announcer
from system.database import open_database
from system.events import PaymentProcessed, PaymentStatus
from system.jetstream import Connection, Publisher, PublishUnavailableError, PublishUnknownError
from system.metrics import Metrics
from system.orders.catching_up import CatchingUp
from system.orders.intake import Intake, NewOrder, NoSuchOrderError, NothingToCancelError
from system.orders.projection import OrderProjection, PaymentProjection
from system.orders.recent import RecentOrders
from system.orders.settling import SettleTimes
from system.orders.store import MIGRATIONS, OrderStore
from system.settings import SqliteLocation
from system.tests.parts import Broker, wait_until
from system.tests.spans import Spans

CANCELLED, DECLINED, PAID, REFUNDED = (
    PaymentStatus.CANCELLED,
    PaymentStatus.DECLINED,
    PaymentStatus.PAID,
    PaymentStatus.REFUNDED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A cancellation in the stream."""

    order_id: str
    reason: str
    headers: str


class Desk:
    """Orders' own parts over a real broker and a real table, without HTTP and without the pull loops."""

    def __init__(self, connection: Connection, publisher: Publisher, store: OrderStore, metrics: Metrics) -> None:
        recent = RecentOrders()
        times = SettleTimes(metrics)
        self.spans = Spans()
        self.intake = Intake(
            connection, Announcer(self.spans.tracer, publisher), store, recent, times, CatchingUp(is_over=True)
        )
        self._payments = PaymentProjection(store, times, metrics)
        self._orders = OrderProjection(store, recent, CatchingUp(is_over=True))
        self._connection = connection

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there, as far as is known."""
        return self._connection.is_connected

    async def place(self, order_id: str) -> None:
        """An accepted order, not in the table yet."""
        await self.intake.accept(
            NewOrder(order_id=order_id, is_named=True, customer_id="c1", amount_minor=1250, currency="EUR")
        )

    async def settle(self, order_id: str, *statuses: PaymentStatus) -> None:
        """Its payment comes to this."""
        payments = [
            PaymentProcessed(
                order_id=order_id,
                status=status,
                payment_id="",
                amount_minor=1250,
                currency="EUR",
                reason="",
                processed_at_ns=1,
            )
            for status in statuses
        ]
        await self._payments.apply(payments)

    async def cancellations(self) -> list[Stored]:
        """Those that the stream holds."""
        found: list[Stored] = []
        sequence = 1
        while True:
            answer = msgspec.json.decode(
                await self._connection.request(
                    f"$JS.API.STREAM.MSG.GET.{topology.ORDERS.name}",
                    msgspec.json.encode({"seq": sequence, "next_by_subj": topology.ORDERS_CANCELLED}),
                    within_s=2.0,
                )
            )
            if "message" not in answer:
                return found
            message = answer["message"]
            event = events.decode_order_cancelled(base64.b64decode(message["data"]))
            headers = base64.b64decode(message["hdrs"]).decode()
            found.append(Stored(order_id=event.order_id, reason=event.reason, headers=headers))
            sequence = message["seq"] + 1


@pytest_asyncio.fixture
async def desk(connection: Connection, metrics: Metrics, tmp_path: Path) -> AsyncIterator[Desk]:
    """An open desk."""
    publisher = Publisher(connection, metrics=metrics)
    await publisher.start()
    await topology.ensure(connection, ())
    async with open_database(
        SqliteLocation(path=tmp_path / "orders.db"),
        migrations=MIGRATIONS,
        name="orders",
        tracer=Spans().tracer,
        metrics=metrics,
    ) as database:
        yield Desk(connection, publisher, OrderStore(database), metrics)


async def test_a_cancellation_is_stored_once_with_its_reason_and_its_trace(desk: Desk) -> None:
    """However often it is asked for: the broker knows the message by its id."""
    await desk.place("o1")
    for reason in ("too late", "far too late"):
        order = await desk.intake.cancel("o1", reason)
        assert order.status == "PENDING"

    (stored,) = await desk.cancellations()
    span = next(span for span in desk.spans.ended if span.name == "publish orders.cancelled")
    assert (stored.order_id, stored.reason) == ("o1", "too late")
    assert "Nats-Msg-Id: order-cancelled:o1\r\n" in stored.headers
    assert f"traceparent: 00-{span.trace_id.hex()}-{span.span_id.hex()}-" in stored.headers


async def test_many_who_cancel_at_once_store_one_cancellation(desk: Desk) -> None:
    """No lock of ours, the broker decides."""
    await desk.place("o1")
    orders = await asyncio.gather(*(desk.intake.cancel("o1", f"reason {n}") for n in range(20)))

    assert {order.status for order in orders} == {"PENDING"}
    assert len(await desk.cancellations()) == 1


async def test_a_paid_order_can_be_cancelled(desk: Desk) -> None:
    """It will be refunded."""
    await desk.place("o1")
    await desk.settle("o1", PAID)

    assert (await desk.intake.cancel("o1", "")).status == "PAID"
    assert len(await desk.cancellations()) == 1


@pytest.mark.parametrize("ends", [(CANCELLED,), (PAID, REFUNDED)], ids=["CANCELLED", "REFUNDED"])
async def test_what_is_undone_already_is_not_asked_for_again(desk: Desk, ends: tuple[PaymentStatus, ...]) -> None:
    """Also long after the broker forgot the first cancellation."""
    await desk.place("o1")
    await desk.settle("o1", *ends)

    assert (await desk.intake.cancel("o1", "")).status == ends[-1].value
    assert await desk.cancellations() == []


async def test_a_declined_order_cannot_be_cancelled(desk: Desk) -> None:
    """No money moved, none will: there is nothing to undo, and nothing is stored."""
    await desk.place("o1")
    await desk.settle("o1", DECLINED)

    with pytest.raises(NothingToCancelError):
        await desk.intake.cancel("o1", "")
    assert await desk.cancellations() == []


async def test_an_order_that_nobody_placed_cannot_be_cancelled(desk: Desk) -> None:
    """Or a stranger could forbid an order before it exists."""
    with pytest.raises(NoSuchOrderError):
        await desk.intake.cancel("o1", "")
    assert await desk.cancellations() == []


async def test_an_order_whose_payment_overtook_it_can_be_cancelled(desk: Desk) -> None:
    """Half known is known."""
    await desk.settle("o1", PAID)

    assert (await desk.intake.cancel("o1", "")).status == "PAID"
    assert len(await desk.cancellations()) == 1


async def test_without_a_broker_nobody_can_tell_whether_a_cancellation_is_stored(
    desk: Desk, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5, for cancellations: what left and was not acknowledged is unknown, what never left is not stored."""
    monkeypatch.setattr("system.orders.intake.ACCEPT_WITHIN_S", 0.3)
    await desk.place("o1")
    assert broker._process is not None
    broker._process.send_signal(signal.SIGSTOP)
    with pytest.raises(PublishUnknownError):
        await desk.intake.cancel("o1", "")
    broker.stop()
    await wait_until(lambda: not desk.is_connected, what="the connection being lost")
    with pytest.raises(PublishUnavailableError):
        await desk.intake.cancel("o1", "")


async def test_the_same_order_again_is_accepted_with_the_status_it_has_now(desk: Desk) -> None:
    """P6: still the same order when it is undone, and still nobody else's."""
    await desk.place("o1")
    await desk.settle("o1", PAID, REFUNDED)

    again = NewOrder(order_id="o1", is_named=True, customer_id="c1", amount_minor=1250, currency="EUR")
    assert await desk.intake.accept(again) == "REFUNDED"
