"""The payments service without processes: its own code over a scripted provider, a table in memory, and a loudspeaker.

Everything that happens is written into one story, in its order.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping, Sequence

from system import events
from system.announcing import Announcer
from system.database import DatabaseError, Row, Statement, Value
from system.events import OrderCancelled, OrderCreated, PaymentProcessed
from system.jetstream import Delivery, PubAck
from system.metrics import Metrics
from system.payments.breaker import CircuitBreaker
from system.payments.calls import ProviderCalls
from system.payments.cancellation import CancellationHandler
from system.payments.handler import PaymentHandler
from system.payments.outbox import Outbox
from system.payments.provider_client import Bill, ChargeOutcome, ProviderClient, RefundOutcome
from system.payments.retries import Backoff
from system.payments.store import MIGRATIONS, Payment, PaymentStore
from system.processing import DeliveryHandler, EachDelivery
from system.tests.spans import Spans

ORDER = OrderCreated(order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)
CANCELLATION = OrderCancelled(
    order_id="o1", reason="changed my mind", cancelled_at_ns=9, amount_minor=1250, currency="EUR"
)


def shown(metrics: Metrics, name: str, value: str = "") -> float:
    """What /metrics shows of a counter or gauge, with this value of its label."""
    for line in metrics.rendered().decode().splitlines():
        what, _, number = line.rpartition(" ")
        shown_name, _, label = what.partition("{")
        if shown_name in (name, f"{name}_total") and label.endswith(f'="{value}"}}' if value else ""):
            return float(number)
    return 0.0


class Recorded(Delivery):
    """A delivery that writes its answers into a story."""

    def __init__(self, story: list[str], subject: str, payload: bytes, *, times_delivered: int = 1) -> None:
        self._story = story
        self.subject, self.stream, self.consumer = subject, "ORDERS", "payment-processor"
        self.payload = payload
        self.sequence = 1
        self.times_delivered = times_delivered
        self.is_answered = False

    @property
    def headers(self) -> Mapping[str, str]:
        """None."""
        return {}

    async def ack(self) -> None:
        """It is part of the story."""
        self._answer_with("ack")

    async def nak(self, delay_s: float) -> None:
        """It is part of the story."""
        self._answer_with(f"nak for {delay_s:.0f} s")

    async def term(self, reason: str) -> None:
        """It is part of the story."""
        self._answer_with(f"term {reason}")

    def _answer_with(self, answer: str) -> None:
        if not self.is_answered:
            self.is_answered = True
            self._story.append(answer)


class InMemory:
    """A `Database` in memory: the statements are the real ones, durability is pretended. failure: of whatever comes."""

    is_up = True

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        for migration in MIGRATIONS:
            self._connection.executescript(migration.sqlite)
        self.read_failure: DatabaseError | None = None
        self.write_failure: DatabaseError | None = None

    async def write(self, statement: Statement, rows: Sequence[Row], *, link: object = None) -> None:
        """All at once."""
        await self.write_soon(statement, rows, link=link)

    def write_soon(self, statement: Statement, rows: Sequence[Row], *, link: object = None) -> asyncio.Future[None]:
        """As above."""
        del link
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.write_failure is not None:
            written.set_exception(self.write_failure)
        else:
            self._connection.executemany(statement.sqlite, rows)
            written.set_result(None)
        return written

    async def read(self, statement: Statement, parameters: Row = ()) -> list[tuple[Value, ...]]:
        """What is there."""
        if self.read_failure is not None:
            raise self.read_failure
        return self._connection.execute(statement.sqlite, parameters).fetchall()

    def close(self) -> None:
        """Forget it all."""
        self._connection.close()


class Noted(PaymentStore):
    """A table whose use is part of the story."""

    def __init__(self, story: list[str], database: InMemory) -> None:
        super().__init__(database)
        self._story = story

    async def record(self, payment: Payment) -> None:
        """It is part of the story once it is durable."""
        await super().record(payment)
        self._story.append(f"record {payment.status}")


Answer = ChargeOutcome | RefundOutcome | Exception


class Scripted(ProviderClient):
    """A provider that answers from a list."""

    def __init__(self, story: list[str]) -> None:
        self._story = story
        self.answers: list[Answer] = []

    async def charge(self, order: OrderCreated, *, attempt: int) -> ChargeOutcome:
        """The next answer of the list."""
        self._story.append(f"charge {self.idempotency_key(order)} {attempt}")
        return self._next()  # type: ignore[return-value]  # the test says what it wants

    async def refund(self, bill: Bill, *, attempt: int) -> RefundOutcome:
        """The next answer of the list."""
        self._story.append(f"refund {self.refund_key(bill)} of {bill.amount_minor} {bill.currency} {attempt}")
        return self._next()  # type: ignore[return-value]  # as above

    def _next(self) -> ChargeOutcome | RefundOutcome:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Loudspeaker(Announcer):
    """An announcer that writes into a story, or fails."""

    def __init__(self, story: list[str]) -> None:
        self._story = story
        self.failure: Exception | None = None
        self.announced: list[PaymentProcessed] = []

    async def announce(
        self,
        *,
        subject: str,
        payload: bytes,
        message_id: str,
        order_id: str,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """The event is part of the story."""
        assert headers is None
        event = events.decode_payment_processed(payload)
        assert (subject, order_id) == ("payments.processed", event.order_id)
        assert deadline_s > 0
        self._story.append(f"announce {message_id}")
        if self.failure is not None:
            raise self.failure
        self.announced.append(event)
        return PubAck(stream="PAYMENTS", sequence=len(self.announced), duplicate=False)


class Graves:
    """Dead letters that are part of the story."""

    def __init__(self, story: list[str]) -> None:
        self._story = story

    async def bury(self, delivery: Delivery, *, reason: str, kind: str, order_id: str) -> None:
        """It is part of the story."""
        del delivery, order_id
        self._story.append(f"bury as {kind}: {reason}")


class Desk:
    """Both handlers of payments, with everything around them scripted. metrics, spans: what they told."""

    def __init__(self, *answers: Answer) -> None:
        self.story: list[str] = []
        self.metrics = Metrics()
        self.spans = Spans()
        self.provider = Scripted(self.story)
        self.provider.answers.extend(answers)
        self.speaker = Loudspeaker(self.story)
        self.database = InMemory()
        self.store = Noted(self.story, self.database)
        self.breaker = CircuitBreaker()
        calls = ProviderCalls(self.breaker, metrics=self.metrics, backoff=Backoff(first_s=0.0, max_s=0.0))
        outbox = Outbox(self.speaker, self.store, metrics=self.metrics)
        self.payments = PaymentHandler(self.provider, calls, self.store, outbox)
        self.cancellations = CancellationHandler(self.provider, calls, self.store, outbox, metrics=self.metrics)

    async def order(self, order: OrderCreated = ORDER) -> list[str]:
        """What happens when this order is delivered, as the consumer runs it."""
        return await self.deliver(self.payments, "orders.created", events.encode_order_created(order))

    async def cancellation(self, cancellation: OrderCancelled = CANCELLATION) -> list[str]:
        """What happens when this cancellation is delivered, as the consumer runs it."""
        return await self.deliver(self.cancellations, "orders.cancelled", events.encode_order_cancelled(cancellation))

    async def deliver(self, handler: DeliveryHandler, subject: str, payload: bytes) -> list[str]:
        """What happens when these bytes are delivered: the story of this delivery alone."""
        before = len(self.story)
        each = EachDelivery(
            handler, tracer=self.spans.tracer, dead_letters=Graves(self.story), metrics=self.metrics, deliveries_max=3
        )
        await each.handle([Recorded(self.story, subject, payload)])
        await self.store.flush(within_s=5.0)
        return self.story[before:]

    async def record(self, status: str, *, announced_s_ago: float | None = None, amount_minor: int = 1250) -> None:
        """What a replica, a webhook or an earlier delivery left in the table."""
        payment = Payment(
            ORDER.order_id,
            status,
            "ch_1" if status in ("PAID", "REFUNDED") else "",
            "re_1" if status == "REFUNDED" else "",
            amount_minor,
            "EUR",
            "",
            5,
        )
        await self.store.record(payment)
        self.story.clear()
        if announced_s_ago is not None:
            announced_at_ns = time.time_ns() - int(announced_s_ago * 1e9)
            await self.database.write(Statement("UPDATE payments SET announced_at_ns = $1"), [(announced_at_ns,)])

    async def row(self, order_id: str = ORDER.order_id) -> Payment | None:
        """What the table says."""
        return await self.store.find(order_id)

    def count(self, name: str, value: str = "") -> float:
        """What a metric says."""
        return shown(self.metrics, name, value)
