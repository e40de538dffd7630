"""Payments and provider on a stage where everything that takes time waits to be told to go on.

The code is the real one on both sides: payments' handlers and its statements, the provider's API and cashier. What is
played is what lies between them: requests and answers on the wire, syncs of the ledger, commits of the table, publishes
and their acks, and the broker. Each is a turn that somebody decides: now, later, or never (lost, failed). So a test can
have any interleaving there is, and a process can die in the middle of any of them; what it had sent goes on without it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from system import events
from system.announcing import Announcer
from system.database import DatabaseError, Row, Statement
from system.events import OrderCancelled, OrderCreated
from system.jetstream import Delivery, PubAck, PublishUnknownError
from system.metrics import Metrics
from system.payments.breaker import CircuitBreaker
from system.payments.calls import ProviderCalls
from system.payments.cancellation import CancellationHandler
from system.payments.handler import PaymentHandler
from system.payments.outbox import Outbox
from system.payments.provider_client import ProviderClient
from system.payments.retries import Backoff
from system.payments.store import PaymentStore
from system.processing import DeliveryHandler, EachDelivery
from system.provider.api import ProviderApi
from system.provider.cashier import Cashier
from system.provider.habits import Behaviour, Habits
from system.provider.ledger import Entry, Ledger, LedgerError
from system.settings import Address
from system.tests.payments_desk import Graves, InMemory
from system.tests.spans import Spans
from system.web import Answer, AnswerLostError, HttpClient, Request, Response

Subject = Literal["orders.created", "orders.cancelled"]

QUIET_AFTER_TURNS = 40
"""Turns of the event loop after which nothing happens any more but what waits on the stage."""
DELIVERED_AT_ONCE_MAX = 2
"""A message is delivered again while its first delivery is in hand: it took longer than AckWait."""


class Stage:
    """Whatever waits for its turn, by name, in the order in which it began to wait."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, asyncio.Future[bool]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> list[str]:
        """Who waits."""
        self._waiting = [(what, turn) for what, turn in self._waiting if not turn.done()]
        return [what for what, _ in self._waiting]

    async def turn(self, what: str) -> bool:
        """Wait; True if it goes well."""
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, turn))
        return await turn

    def on_its_own(self, work: Coroutine[None, None, None]) -> None:
        """Something that goes on though whoever began it dies."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def go_on(self, index: int, *, goes_well: bool = True) -> None:
        """It is the turn of this one; returns when nothing but what waits can happen."""
        assert self.waiting
        _, turn = self._waiting.pop(index)
        turn.set_result(goes_well)
        await self.quiet()

    async def quiet(self) -> None:
        """Let everything happen that does not wait."""
        for _ in range(QUIET_AFTER_TURNS):
            await asyncio.sleep(0)


class Wire(HttpClient):
    """The network between payments and the provider."""

    def __init__(self, stage: Stage, api: ProviderApi) -> None:
        super().__init__(Address(host="nowhere", port=1))
        self._stage = stage
        self._api = api

    async def post(self, path: str, body: bytes, *, headers: Mapping[str, str], within_s: float) -> Answer:
        """What the provider answers, if it hears of it, and if we hear of that."""
        del within_s
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        request = Request(method="POST", path=path, headers=headers, body=body)
        self._stage.on_its_own(self._carry(request, answered))
        return await answered

    async def _carry(self, request: Request, answered: asyncio.Future[Answer]) -> None:
        lost = AnswerLostError("the connection broke")
        is_heard = await self._stage.turn(f"{request.path} arrives")
        if is_heard:
            answer = self._api(request)
            response = answer if isinstance(answer, Response) else await answer
            is_heard = await self._stage.turn(f"the answer to {request.path} arrives")
        if answered.done():
            return
        if is_heard:
            answered.set_result(Answer(status=response.status, body=response.body))
        else:
            answered.set_exception(lost)


class Book(Ledger):
    """A ledger in memory, whose syncs take their time and may fail."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.entries: list[Entry] = []

    def append(self, entry: Entry) -> asyncio.Future[Entry]:
        """As the real one."""
        durable: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._stage.on_its_own(self._sync(entry, durable))
        return durable

    async def _sync(self, entry: Entry, durable: asyncio.Future[Entry]) -> None:
        failure = None if await self._stage.turn("the ledger syncs") else LedgerError("the disk is full")
        if failure is None:
            entry.seq = len(self.entries) + 1
            self.entries.append(entry)
        self.on_settled([entry], failure)
        if durable.done():
            return
        if failure is None:
            durable.set_result(entry)
        else:
            durable.set_exception(failure)


class Table(InMemory):
    """A table whose commits take their time and may fail."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def write_soon(self, statement: Statement, rows: Sequence[Row], *, link: object = None) -> asyncio.Future[None]:
        """As the real one."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stage.on_its_own(self._commit(statement, rows, written))
        del link
        return written

    async def _commit(self, statement: Statement, rows: Sequence[Row], written: asyncio.Future[None]) -> None:
        if not await self._stage.turn("the table commits"):
            if not written.done():
                written.set_exception(DatabaseError("the disk is full"))
            return
        await super().write_soon(statement, rows)
        if not written.done():
            written.set_result(None)


class Stream(Announcer):
    """The stream PAYMENTS: what it stores, once per message id; acks may be lost."""

    def __init__(self, stage: Stage, book: Book) -> None:
        self._stage = stage
        self._book = book
        self.stored: dict[str, str] = {}

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
        """As the real one."""
        del subject, order_id, deadline_s, headers
        acked: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        self._stage.on_its_own(self._store(message_id, payload, acked))
        return await acked

    async def _store(self, message_id: str, payload: bytes, acked: asyncio.Future[PubAck]) -> None:
        is_heard = await self._stage.turn("an announcement arrives")
        if is_heard:
            status = events.decode_payment_processed(payload).status.value
            kinds = {entry.kind for entry in self._book.entries}
            assert CAUSES[status] <= kinds, f"{status} is announced, and the ledger has {kinds}"
            self.stored.setdefault(message_id, status)
            is_heard = await self._stage.turn("a PubAck arrives")
        if acked.done():
            return
        if is_heard:
            acked.set_result(PubAck(stream="PAYMENTS", sequence=1, duplicate=False))
        else:
            acked.set_exception(PublishUnknownError("no ack"))


CAUSES = {
    "PAID": {"charge"},
    "DECLINED": {"decline"},
    "REFUNDED": {"charge", "refund"},
    "CANCELLED": {"void"},
}
"""What must be in the ledger before anybody may say so."""


class OnStage(Delivery):
    """A delivery whose ack takes its time and may be lost."""

    def __init__(self, stage: Stage, message: Stored, subject: Subject) -> None:
        self._stage = stage
        self._stored = message
        self.subject, self.stream, self.consumer = subject, "ORDERS", "a processor"
        self.payload = message.payload
        self.sequence, self.times_delivered = 1, 1
        self.is_answered = False

    @property
    def headers(self) -> Mapping[str, str]:
        """None."""
        return {}

    async def ack(self) -> None:
        """It leaves."""
        self.is_answered = True
        self._stage.on_its_own(self._arrive())

    async def nak(self, delay_s: float) -> None:
        """The play delivers again when it wants."""
        del delay_s
        self.is_answered = True

    async def term(self, reason: str) -> None:
        """There is no reason for one."""
        raise AssertionError(reason)

    async def _arrive(self) -> None:
        if await self._stage.turn("an ack arrives"):
            self._stored.is_acked = True


@dataclass(slots=True, kw_only=True)
class Stored:
    """A message of the stream ORDERS."""

    payload: bytes
    is_acked: bool = False


@dataclass(slots=True, kw_only=True)
class Replica:
    """A payments process: its handlers, and what it has in hand."""

    handlers: dict[Subject, EachDelivery]
    in_hand: dict[asyncio.Task[None], Subject] = field(default_factory=dict)


class Play:
    """One order and its cancellation, at one provider and one or more replicas of payments."""

    def __init__(self, *, amount_minor: int = 1250, replicas: int = 1, share_a_table: bool = False) -> None:
        self.stage = Stage()
        self.book = Book(self.stage)
        behaviour = Behaviour(Habits())
        cashier = Cashier(self.book, declines=behaviour.declines)
        spans = Spans()
        api = ProviderApi(cashier, behaviour, tracer=spans.tracer, metrics=Metrics())
        self._wire = Wire(self.stage, api)
        self.stream = Stream(self.stage, self.book)
        self._tables = [Table(self.stage) for _ in range(1 if share_a_table else replicas)]
        self._graves: list[str] = []
        self.replicas = [self._replica(number) for number in range(replicas)]
        order = OrderCreated(
            order_id="o1", customer_id="c1", amount_minor=amount_minor, currency="EUR", created_at_ns=1
        )
        cancellation = OrderCancelled(
            order_id="o1", reason="", cancelled_at_ns=2, amount_minor=amount_minor, currency="EUR"
        )
        self.messages: dict[Subject, Stored] = {
            "orders.created": Stored(payload=events.encode_order_created(order)),
            "orders.cancelled": Stored(payload=events.encode_order_cancelled(cancellation)),
        }

    async def deliver(self, subject: Subject, to: int = 0) -> None:
        """A message is delivered to a replica."""
        replica = self.replicas[to]
        delivery = OnStage(self.stage, self.messages[subject], subject)
        task = asyncio.get_running_loop().create_task(replica.handlers[subject].handle([delivery]))
        replica.in_hand[task] = subject
        task.add_done_callback(lambda done: replica.in_hand.pop(done, None))
        await self.stage.quiet()

    async def kill(self, number: int = 0) -> None:
        """A replica dies and another takes its place; what it had sent is on its way."""
        in_hand = list(self.replicas[number].in_hand)
        for task in in_hand:
            task.cancel()
        if in_hand:
            await asyncio.wait(in_hand)
        self.replicas[number] = self._replica(number)
        await self.stage.quiet()

    async def go_on(self, what: str, *, goes_well: bool = True) -> None:
        """It is the turn of the first that waits for this."""
        await self.stage.go_on(self.stage.waiting.index(what), goes_well=goes_well)

    async def choose(self, number: int, *, bad_left: int) -> bool:
        """Do one of the things that can happen now; True if it was a bad one."""
        turns = len(self.stage.waiting)
        deliverable = [
            (subject, to)
            for subject, message in self.messages.items()
            if not message.is_acked and self._held(subject) < DELIVERED_AT_ONCE_MAX
            for to in range(len(self.replicas))
        ]
        bad = turns + len(self.replicas) if bad_left else 0
        chosen = number % max(1, turns + len(deliverable) + bad)
        if chosen < turns:
            await self.stage.go_on(chosen)
        elif (chosen := chosen - turns) < len(deliverable):
            await self.deliver(*deliverable[chosen])
        elif (chosen := chosen - len(deliverable)) < turns:
            await self.stage.go_on(chosen, goes_well=False)
            return True
        elif bad:
            await self.kill(chosen - turns)
            return True
        return False

    async def end_well(self) -> None:
        """Nothing bad happens any more, and what is not acknowledged is delivered again."""
        for _ in range(1000):
            while self.stage.waiting:
                await self.stage.go_on(0)
            undone = [subject for subject, message in self.messages.items() if not message.is_acked]
            if not undone:
                assert self._graves == []
                return
            for subject in undone:
                if not self._held(subject):
                    await self.deliver(subject)
        raise AssertionError(f"it does not end: {self.stage.waiting}")

    def kinds(self) -> Counter[str]:
        """What is in the ledger."""
        return Counter(entry.kind for entry in self.book.entries)

    def announced(self) -> list[str]:
        """What the stream says became of the payment."""
        return sorted(self.stream.stored.values())

    async def recorded(self) -> set[str]:
        """What the tables say."""
        rows = [await PaymentStore(table).find("o1") for table in self._tables]
        return {row.status for row in rows if row is not None}

    async def close(self) -> None:
        """Leave nothing running."""
        for number in range(len(self.replicas)):
            await self.kill(number)
        for table in self._tables:
            table.close()

    def _held(self, subject: Subject) -> int:
        return sum(list(replica.in_hand.values()).count(subject) for replica in self.replicas)

    def _replica(self, number: int) -> Replica:
        metrics, spans = Metrics(), Spans()
        store = PaymentStore(self._tables[number % len(self._tables)])
        provider = ProviderClient(self._wire, tracer=spans.tracer)
        calls = ProviderCalls(
            CircuitBreaker(failures_max=1_000_000), metrics=metrics, backoff=Backoff(first_s=0.0, max_s=0.0)
        )
        outbox = Outbox(self.stream, store, metrics=metrics)
        handlers: dict[Subject, DeliveryHandler] = {
            "orders.created": PaymentHandler(provider, calls, store, outbox),
            "orders.cancelled": CancellationHandler(provider, calls, store, outbox, metrics=metrics),
        }
        return Replica(
            handlers={
                subject: EachDelivery(handler, tracer=spans.tracer, dead_letters=Graves(self._graves), metrics=metrics)
                for subject, handler in handlers.items()
            }
        )
