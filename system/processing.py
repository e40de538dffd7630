"""What happens around the handling of deliveries: their spans, and an answer to the broker in any case.

`EachDelivery` gives each delivery to a handler of its own, `WholeBatch` gives what arrived together to one that commits
it together. Promises of both: a handling never raises. What can never succeed (`GiveUpError`, undecodable bytes)
becomes a dead letter at once, and what failed `deliveries_max` times in this process for a reason of its own does
then; it is terminated only after the dead letter is stored. What cannot be done now (`TryLaterError`) is handed back as
often as it takes: an outage is not the message's fault. Every other failure is handed back too, with a delay that
grows with the number of deliveries, so that a fault is not met with a storm.

Each delivery is processed in a CONSUMER span under its message's creation; what came together has one span that says
that it was received, and one that says that it was settled, each linked to all of these creations.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from opentelemetry.trace import SpanKind

from system import telemetry
from system.events import UndecodableError
from system.jetstream import Delivery
from system.metrics import Metrics
from system.telemetry import HotSpan, LeanTracer, Parent, SpanTemplate

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
RETRY_JITTER = 0.25
DELIVERIES_MAX = 20
"""Tries of a message that fails for a reason of its own, before it becomes a dead letter."""
FAILURES_KEPT_MAX = 4096
"""Messages whose failures are counted at once; what fails in greater numbers is no matter of single messages."""
SETTLED_EVERY_S = 0.002
"""Answers are told of together, as they leave together."""

Item = TypeVar("Item")


class GiveUpError(Exception):
    """This message can never be handled; the message says why."""


class TryLaterError(Exception):
    """This message cannot be handled now; the message says why. retry_in_s: when it may be, None if nobody knows."""

    def __init__(self, message: str, *, retry_in_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s


class DeliveryHandler(Protocol):
    """Handles deliveries one by one."""

    async def handle(self, delivery: Delivery) -> None:
        """Do the work and ack; what it raises is answered for it."""


class BatchHandler(Protocol[Item]):
    """Handles what arrived together."""

    def read(self, delivery: Delivery) -> Item:
        """What a delivery says; `UndecodableError` or `GiveUpError` if it says nothing."""

    def order_id(self, item: Item) -> str:
        """The order it is about."""

    async def apply(self, items: Sequence[Item]) -> None:
        """Do the work; it is durable when this returns."""


class DeadLetters(Protocol):
    """Where messages go that are given up."""

    async def bury(
        self, delivery: Delivery, *, reason: str, kind: Literal["poison", "exhausted"], order_id: str
    ) -> None:
        """Store it; raises if it may not be stored. order_id: empty if nobody knows."""


class EachDelivery:
    """Runs a handler for each delivery, in a task and a span of its own."""

    def __init__(
        self,
        handler: DeliveryHandler,
        *,
        tracer: LeanTracer,
        dead_letters: DeadLetters,
        metrics: Metrics,
        deliveries_max: int = DELIVERIES_MAX,
    ) -> None:
        self._handler = handler
        self._spans = _Spans(tracer)
        self._failures = _Failures(dead_letters, metrics, deliveries_max)

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Handle what arrived together, side by side."""
        origins, _ = self._spans.receive(deliveries)
        if len(deliveries) == 1:
            await self._handle(deliveries[0], origins[0])
            return
        async with asyncio.TaskGroup() as handlings:
            for delivery, origin in zip(deliveries, origins, strict=True):
                handlings.create_task(self._handle(delivery, origin))

    async def _handle(self, delivery: Delivery, origin: Parent | None) -> None:
        work = self._spans.process(delivery, origin)
        try:
            await self._handler.handle(delivery)
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the message must not be lost
            await self._failures.answer(work, error)
        except asyncio.CancelledError:
            work.fail("not finished before the process stopped")
            raise
        else:
            self._failures.forget(delivery)
            work.end()
        self._spans.settle(work)


class WholeBatch(Generic[Item]):
    """Has one handler do the work of all deliveries that arrived together, each in a span of its own."""

    def __init__(
        self,
        handler: BatchHandler[Item],
        *,
        tracer: LeanTracer,
        dead_letters: DeadLetters,
        metrics: Metrics,
        deliveries_max: int = DELIVERIES_MAX,
    ) -> None:
        self._handler = handler
        self._spans = _Spans(tracer)
        self._failures = _Failures(dead_letters, metrics, deliveries_max)

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Handle what arrived together."""
        origins, received = self._spans.receive(deliveries)
        works = [self._spans.process(delivery, origin) for delivery, origin in zip(deliveries, origins, strict=True)]
        try:
            read: list[tuple[_Work, Item]] = []
            unread: list[tuple[_Work, Exception]] = []
            for work in works:
                work.span.activate()
                try:
                    item = self._handler.read(work.delivery)
                    work.order_id = self._handler.order_id(item)
                except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the message must not be lost
                    unread.append((work, error))
                else:
                    read.append((work, item))
            received.activate()  # what is done for all of them is done for none of them
            if read:
                await self._apply(read)
            # Afterwards and side by side: burying may take seconds, and the others are in no way to blame.
            await asyncio.gather(*(self._answer(work, error) for work, error in unread))
        except asyncio.CancelledError:
            for work in works:
                work.fail("not finished before the process stopped")
            raise
        for work in works:
            self._spans.settle(work)

    async def _answer(self, work: _Work, error: Exception) -> None:
        work.span.activate()
        await self._failures.answer(work, error)

    async def _apply(self, read: Sequence[tuple[_Work, Item]]) -> None:
        try:
            await self._handler.apply([item for _, item in read])
        except TryLaterError as error:
            for work, _ in read:
                await self._failures.answer(work, error)
        except Exception as error:  # noqa: BLE001 - the edge, as above
            if len(read) == 1:
                work = read[0][0]
                work.span.activate()
                await self._failures.answer(work, error)
                return
            log.warning("%d messages failed together and are tried one by one: %s", len(read), _told(error))
            for one in read:
                await self._apply((one,))
        else:
            for work, _ in read:
                await work.delivery.ack()
                self._failures.forget(work.delivery)
                work.end()


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """One delivery and its span, which is ended once. order_id: empty until somebody knows."""

    delivery: Delivery
    origin: Parent | None
    span: HotSpan
    order_id: str = ""
    is_ended: bool = False

    def end(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            self.span.end(*self._values())

    def fail(self, description: str) -> None:
        if not self.is_ended:
            self.is_ended = True
            self.span.fail(description, *self._values())

    def _values(self) -> tuple[str | int | None, ...]:
        delivery = self.delivery
        return (
            delivery.times_delivered,
            delivery.sequence,
            delivery.headers.get("Nats-Msg-Id"),
            self.order_id or None,
        )


class _Spans:
    """The spans around handlings."""

    def __init__(self, tracer: LeanTracer) -> None:
        self._tracer = tracer
        self._settled: list[_Work] = []

    def receive(self, deliveries: Sequence[Delivery]) -> tuple[list[Parent | None], HotSpan]:
        """Tell that these arrived together; returns what each of them stands under, and the span."""
        origins = [telemetry.parent_in(delivery.headers) for delivery in deliveries]
        template = _templates(deliveries[0].subject, deliveries[0].consumer).receive
        span = self._tracer.begin(template, telemetry.ROOT, links=[origin for origin in origins if origin is not None])
        span.end(len(deliveries))
        return origins, span

    def process(self, delivery: Delivery, origin: Parent | None) -> _Work:
        """Begin the span of one handling, and make it the current one."""
        template = _templates(delivery.subject, delivery.consumer).process
        span = self._tracer.begin(template, origin or telemetry.ROOT)
        span.activate()
        return _Work(delivery=delivery, origin=origin, span=span)

    def settle(self, work: _Work) -> None:
        """Tell, together with others, that this one was answered."""
        if not self._settled:
            asyncio.get_running_loop().call_later(SETTLED_EVERY_S, self._tell_settled)
        self._settled.append(work)

    def _tell_settled(self) -> None:
        settled, self._settled = self._settled, []
        template = _templates(settled[0].delivery.subject, settled[0].delivery.consumer).settle
        links = [work.origin for work in settled if work.origin is not None]
        self._tracer.begin(template, telemetry.ROOT, links=links).end(len(settled))


class _Failures:
    """Answers what failed, and remembers how often."""

    def __init__(self, dead_letters: DeadLetters, metrics: Metrics, deliveries_max: int) -> None:
        self._dead_letters = dead_letters
        self._deliveries_max = deliveries_max
        # Counted here and not read off the delivery, which counts the tries in an outage, too.
        self._times: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._handed_back = metrics.counter("messages_handed_back", "Deliveries handed back for another try")

    def forget(self, delivery: Delivery) -> None:
        """It has succeeded."""
        if self._times:
            self._times.pop((delivery.stream, delivery.sequence), None)

    async def answer(self, work: _Work, error: Exception) -> None:
        """Bury the message or hand it back, and end its span."""
        match error:
            case GiveUpError() | UndecodableError():
                await self._bury(work, str(error), "poison")
            case TryLaterError():
                log.info("%s is handed back: %s", _name(work.delivery), error)
                await self._hand_back(work, error, error.retry_in_s)
            case _:
                times = self._count(work.delivery)
                if times >= self._deliveries_max:
                    log.error("%s failed for the last time: %s", _name(work.delivery), _told(error), exc_info=error)
                    await self._bury(work, f"failed {times} times, the last time with {_told(error)}", "exhausted")
                else:
                    log.warning("%s failed: %s", _name(work.delivery), _told(error), exc_info=error)
                    await self._hand_back(work, error, None)

    def _count(self, delivery: Delivery) -> int:
        key = (delivery.stream, delivery.sequence)
        times = self._times[key] = self._times.pop(key, 0) + 1
        if len(self._times) > FAILURES_KEPT_MAX:
            self._times.popitem(last=False)
        return times

    async def _bury(self, work: _Work, reason: str, kind: Literal["poison", "exhausted"]) -> None:
        delivery = work.delivery
        try:
            await self._dead_letters.bury(
                delivery, reason=reason, kind=kind, order_id=work.order_id or _order_in(delivery)
            )
        except Exception as error:  # noqa: BLE001 - the edge: what cannot be buried must not be lost either
            log.warning("%s cannot be buried now: %s", _name(delivery), _told(error))
            await self._hand_back(work, error, None)
        else:
            self.forget(delivery)
            await delivery.term(reason)
            work.fail(reason)

    async def _hand_back(self, work: _Work, error: Exception, retry_in_s: float | None) -> None:
        self._handed_back.add()
        delay_s = retry_in_s
        if delay_s is None:
            delay_s = min(RETRY_FIRST_S * 2 ** min(work.delivery.times_delivered - 1, 10), RETRY_MAX_S)
        # Later rather than sooner: who says when does not want to be asked before.
        await work.delivery.nak(delay_s * random.uniform(1.0, 1 + RETRY_JITTER))  # noqa: S311 - jitter is no secret
        work.fail(_told(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Templates:
    receive: SpanTemplate
    process: SpanTemplate
    settle: SpanTemplate


@functools.lru_cache(maxsize=256)
def _templates(subject: str, consumer: str) -> _Templates:
    def constant(operation: str) -> dict[str, str]:
        return {
            "messaging.system": "nats",
            "messaging.operation.type": operation,
            "messaging.operation.name": operation,
            "messaging.destination.name": subject,
            "messaging.consumer.group.name": consumer,
        }

    return _Templates(
        receive=SpanTemplate(
            f"receive {subject}", SpanKind.CONSUMER, constant("receive"), ("messaging.batch.message_count",)
        ),
        process=SpanTemplate(
            f"process {subject}",
            SpanKind.CONSUMER,
            constant("process"),
            (
                "messaging.nats.delivery_count",
                "messaging.nats.stream.sequence",
                "messaging.message.id",
                "order.id",
            ),
            links_parent=True,  # a parent for those who draw trees, a link for those who follow the conventions
        ),
        settle=SpanTemplate(
            f"settle {subject}", SpanKind.CLIENT, constant("settle"), ("messaging.batch.message_count",)
        ),
    )


def _name(delivery: Delivery) -> str:
    return f"message {delivery.sequence} of {delivery.stream} (delivery {delivery.times_delivered})"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _order_in(delivery: Delivery) -> str:
    """The order that a message is about, as far as its id says so: `<what happened>:<order>`, see `system.topology`."""
    _, colon, order_id = delivery.headers.get("Nats-Msg-Id", "").rpartition(":")
    return order_id if colon else ""
