"""What becomes of deliveries whose handling succeeds, fails, or has to wait; and what their spans say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import SpanKind

from system import telemetry
from system.announcing import Announcer
from system.events import UndecodableError
from system.jetstream import (
    Connection,
    Consumer,
    ConsumerSpec,
    Delivery,
    Message,
    PubAck,
    Publisher,
    PublishUnknownError,
    StreamSpec,
    ensure_consumer,
    ensure_stream,
)
from system.jetstream.wire import header_block
from system.metrics import Metrics
from system.processing import EachDelivery, GiveUpError, TryLaterError, WholeBatch
from system.telemetry import SpanTemplate
from system.tests.parts import wait_until
from system.tests.spans import Spans

NOT_NOW = TryLaterError("the provider is away")
TRACE, CREATOR = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Story:
    """What happened, in its order, and everything around the handlers under test."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.spans = Spans()
        self.metrics = Metrics()
        self.graves_are_full = False

    def delivery(self, number: int, payload: str = "", *, times: int = 1, message_id: str = "") -> Delivery:
        """Delivery of a message whose trace, creation and order end with its number."""
        headers = {
            "traceparent": f"00-{TRACE[:-2]}{number:02x}-{CREATOR[:-2]}{number:02x}-01",
            "Nats-Msg-Id": message_id or f"order-created:o{number}",
        }
        reply = f"$JS.ACK.ORDERS.worker.{times}.{number}.{number}.0.0"
        return Delivery(_Answers(self), Message("orders.created", reply, payload.encode(), header_block(headers)))

    async def bury(self, delivery: Delivery, *, reason: str, kind: str, order_id: str) -> None:
        """It is a `DeadLetters`."""
        if self.graves_are_full:
            raise PublishUnknownError("no ack")
        self.told.append(f"{delivery.sequence} buried as {kind} of {order_id or 'nobody'}: {reason}")

    def each(self, handle: Callable[[Delivery], Any], deliveries_max: int = 3) -> EachDelivery:
        """What is tested, over a handler that is one function."""
        handler = _Handler(handle)
        return EachDelivery(
            handler, tracer=self.spans.tracer, dead_letters=self, metrics=self.metrics, deliveries_max=deliveries_max
        )

    def whole(self, table: Table) -> WholeBatch[str]:
        """What is tested, over a table."""
        return WholeBatch(table, tracer=self.spans.tracer, dead_letters=self, metrics=self.metrics, deliveries_max=3)

    def spans_named(self, name: str) -> list[Span]:
        """What was told of, in the order in which it ended."""
        return [span for span in self.spans.ended if span.name == name]


class _Answers(Connection):
    """A connection that tells which answers it was given."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def post_or_keep(self, frame: bytes, *, within_s: float) -> None:
        del within_s
        line, answer, _ = frame.decode().split("\r\n", 2)
        delayed = re.fullmatch(r'-NAK \{"delay": (\d+)\}', answer)
        sequence = line.split()[1].split(".")[5]
        self._story.told.append(f"{sequence} nak {int(delayed[1]) / 1e9:.2f}" if delayed else f"{sequence} {answer}")


class _Handler:
    def __init__(self, function: Callable[[Delivery], Any]) -> None:
        self._function = function

    async def handle(self, delivery: Delivery) -> None:
        result = self._function(delivery)
        if asyncio.iscoroutine(result):
            await result
        await delivery.ack()


class Table:
    """A batch handler that refuses some items. refused: what it raises for them, `all` for whatever comes."""

    def __init__(self, story: Story, **refused: Exception) -> None:
        self._story = story
        self._refused = refused
        self.current: list[str] = []

    def read(self, delivery: Delivery) -> str:
        """The payload, which is the order's id."""
        if delivery.payload == b"rubbish":
            raise UndecodableError("these bytes are no OrderCreated")
        return delivery.payload.decode()

    def order_id(self, item: str) -> str:
        """The order's id."""
        return item

    async def apply(self, items: Sequence[str]) -> None:
        """Write them all, or none."""
        self._story.told.append(f"apply {' '.join(items)}")
        await asyncio.sleep(0)
        for item in items:
            if error := self._refused.get(item, self._refused.get("all")):
                raise error
        self._story.told.append("committed")


@pytest.fixture
def story() -> Story:
    """A fresh one."""
    return Story()


def attributes_of(span: Span) -> dict[str, object]:
    """Name and value of each attribute."""
    return {
        each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
        for each in span.attributes
    }


def delay_in(told: str) -> float:
    """The delay of a nak, in seconds."""
    match = re.fullmatch(r"\d+ nak ([\d.]+)", told)
    assert match, told
    return float(match[1])


async def test_each_delivery_is_handled_in_a_span_under_its_messages_creation(story: Story) -> None:
    """Parent and link to whoever created it; what the handler says of the order is on it."""
    seen: list[str] = []

    def handle(delivery: Delivery) -> None:
        span = telemetry.current()
        assert span is not None
        seen.append(span.as_parent().trace_id.hex())
        telemetry.about_order(f"o{delivery.sequence}")

    await story.each(handle).handle([story.delivery(1), story.delivery(2, times=3)])

    assert sorted(story.told) == ["1 +ACK", "2 +ACK"]
    assert seen == [f"{TRACE[:-2]}01", f"{TRACE[:-2]}02"]
    first, second = story.spans_named("process orders.created")
    assert (first.kind, first.trace_id.hex()) == (Span.SPAN_KIND_CONSUMER, f"{TRACE[:-2]}01")
    assert first.parent_span_id.hex() == first.links[0].span_id.hex() == f"{CREATOR[:-2]}01"
    assert attributes_of(second) == {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "orders.created",
        "messaging.consumer.group.name": "worker",
        "messaging.nats.delivery_count": 3,
        "messaging.nats.stream.sequence": 2,
        "messaging.message.id": "order-created:o2",
        "order.id": "o2",
    }


async def test_a_message_without_a_trace_begins_one(story: Story) -> None:
    """Whoever published it, its handling is told."""
    delivery = Delivery(_Answers(story), Message("orders.created", "$JS.ACK.ORDERS.worker.1.1.1.0.0", b""))

    await story.each(lambda _: None).handle([delivery])

    (span,) = story.spans_named("process orders.created")
    assert (span.parent_span_id, list(span.links)) == (b"", [])


async def test_what_arrives_together_is_told_of_together(story: Story) -> None:
    """One span that says received, one that says settled: traces of their own, linked to every message's creation."""
    await story.each(lambda _: None).handle([story.delivery(number) for number in (1, 2, 3)])
    await wait_until(lambda: bool(story.spans_named("settle orders.created")))

    for name, kind in (("receive", Span.SPAN_KIND_CONSUMER), ("settle", Span.SPAN_KIND_CLIENT)):
        (span,) = story.spans_named(f"{name} orders.created")
        assert (span.kind, span.parent_span_id) == (kind, b"")
        assert [link.span_id.hex() for link in span.links] == [f"{CREATOR[:-2]}0{number}" for number in (1, 2, 3)]
        attributes = attributes_of(span)
        assert attributes["messaging.operation.type"] == name
        assert attributes["messaging.batch.message_count"] == 3
        assert "order.id" not in attributes
    assert story.spans.open == 0


async def test_a_slow_handling_keeps_no_other_waiting(story: Story) -> None:
    """They run side by side, though they came together."""
    go_on = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.sequence == 1:
            await go_on.wait()
        else:
            go_on.set()

    await asyncio.wait_for(story.each(handle).handle([story.delivery(1), story.delivery(2)]), 5)

    assert story.told == ["2 +ACK", "1 +ACK"]


@pytest.mark.parametrize("error", [GiveUpError("an amount of 0"), UndecodableError("an amount of 0")])
async def test_what_can_never_be_handled_is_buried_and_then_terminated(story: Story, error: Exception) -> None:
    """At once, whichever delivery it is; the order is known from the message's id."""

    def handle(_: Delivery) -> None:
        raise error

    await story.each(handle).handle([story.delivery(1)])

    assert story.told == ["1 buried as poison of o1: an amount of 0", "1 +TERM an amount of 0"]
    (span,) = story.spans_named("process orders.created")
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "an amount of 0")


async def test_what_cannot_be_buried_comes_again(story: Story) -> None:
    """Nothing is terminated before its dead letter is stored."""
    story.graves_are_full = True

    def handle(_: Delivery) -> None:
        raise GiveUpError("an amount of 0")

    await story.each(handle).handle([story.delivery(1)])

    (told,) = story.told
    assert delay_in(told) > 0


async def test_an_outage_buries_nothing_however_long_it_takes(story: Story) -> None:
    """And the first failure after it that is the message's own is the first one."""
    errors: list[Exception] = [*[NOT_NOW] * 50, *[ValueError("odd")] * 2]

    def handle(_: Delivery) -> None:
        raise errors.pop(0)

    each = story.each(handle, deliveries_max=3)
    for times in range(1, 53):
        await each.handle([story.delivery(1, times=times)])

    delays_s = [delay_in(told) for told in story.told]
    assert len(delays_s) == 52
    assert 0.25 <= delays_s[0] <= 0.32
    assert all(5.0 <= delay_s <= 6.25 for delay_s in delays_s[5:])
    assert story.metrics.counter("messages_handed_back", "").value == 52


async def test_whoever_knows_when_to_try_again_is_heard(story: Story) -> None:
    """Not before, and not all at the same moment."""

    def handle(_: Delivery) -> None:
        raise TryLaterError("the breaker is open", retry_in_s=12.0)

    await story.each(handle).handle([story.delivery(number) for number in range(1, 21)])

    delays_s = {delay_in(told) for told in story.told}
    assert min(delays_s) >= 12.0
    assert max(delays_s) <= 15.0
    assert len(delays_s) > 10


async def test_a_message_that_fails_again_and_again_is_buried_as_exhausted(story: Story) -> None:
    """On the last of its tries, with what it failed with; a message that failed and then did not begins anew."""
    failing = True

    def handle(_: Delivery) -> None:
        if failing:
            raise ValueError("odd")

    each = story.each(handle, deliveries_max=3)
    for _ in range(2):
        await each.handle([story.delivery(1)])
    failing = False
    await each.handle([story.delivery(1)])
    failing = True
    assert story.told[2] == "1 +ACK"
    story.told.clear()

    for _ in range(3):
        await each.handle([story.delivery(1)])

    assert [delay_in(told) > 0 for told in story.told[:2]] == [True, True]
    assert story.told[2:] == [
        "1 buried as exhausted of o1: failed 3 times, the last time with ValueError: odd",
        "1 +TERM failed 3 times, the last time with ValueError: odd",
    ]


@pytest.mark.parametrize(
    ("message_id", "order_id"),
    [("order-created:o7", "o7"), ("replay:3:1:order-created:o7", "o7"), ("whatever", "nobody")],
)
async def test_the_order_of_what_nobody_could_read_is_known_from_its_id(
    story: Story, message_id: str, order_id: str
) -> None:
    """As far as it says so."""

    def handle(_: Delivery) -> None:
        raise UndecodableError("rubbish")

    await story.each(handle).handle([story.delivery(1, message_id=message_id)])

    assert story.told[0] == f"1 buried as poison of {order_id}: rubbish"


async def test_a_handling_cut_short_by_a_stop_is_not_answered(story: Story) -> None:
    """The broker delivers it again; its span says why it ended."""
    batch = asyncio.ensure_future(
        story.each(lambda _: asyncio.sleep(60)).handle([story.delivery(1), story.delivery(2)])
    )
    await wait_until(lambda: story.spans.open == 2)
    batch.cancel()
    await asyncio.wait([batch])

    assert batch.cancelled()
    assert not story.told
    assert story.spans.open == 0
    spans = story.spans_named("process orders.created")
    assert {span.status.message for span in spans} == {"not finished before the process stopped"}


async def test_a_batch_is_committed_once_and_acknowledged_after(story: Story) -> None:
    """No ack before the commit; each delivery has its own span, with its order."""
    table = Table(story)

    await story.whole(table).handle([story.delivery(number, f"o{number}") for number in (1, 2, 3)])

    assert story.told == ["apply o1 o2 o3", "committed", "1 +ACK", "2 +ACK", "3 +ACK"]
    spans = story.spans_named("process orders.created")
    assert [span.trace_id.hex()[-2:] for span in spans] == ["01", "02", "03"]
    assert [attributes_of(span)["order.id"] for span in spans] == ["o1", "o2", "o3"]


async def test_what_is_done_for_all_of_a_batch_is_done_for_none_of_them(story: Story) -> None:
    """The current span of the commit is that of the receiving: no order's trace gets the others' logs."""
    inside: list[str] = []

    class Curious(Table):
        async def apply(self, items: Sequence[str]) -> None:
            span = telemetry.current()
            assert span is not None
            inside.append(span.as_parent().trace_id.hex())
            await super().apply(items)

    await story.whole(Curious(story)).handle([story.delivery(1, "o1"), story.delivery(2, "o2")])

    assert inside == [story.spans_named("receive orders.created")[0].trace_id.hex()]


async def test_rubbish_among_a_batch_hurts_nobody_else(story: Story) -> None:
    """It is buried, which may take a while: after the others are committed."""
    table = Table(story)

    await story.whole(table).handle([story.delivery(1, "o1"), story.delivery(2, "rubbish"), story.delivery(3, "o3")])

    assert story.told == [
        "apply o1 o3",
        "committed",
        "1 +ACK",
        "3 +ACK",
        "2 buried as poison of o2: these bytes are no OrderCreated",
        "2 +TERM these bytes are no OrderCreated",
    ]


@pytest.mark.parametrize(
    ("error", "end"),
    [(ValueError("odd"), "2 nak"), (GiveUpError("no such currency"), "2 +TERM no such currency")],
)
async def test_a_row_that_breaks_the_commit_hurts_nobody_else(story: Story, error: Exception, end: str) -> None:
    """What fails together is tried one by one."""
    table = Table(story, o2=error)

    await story.whole(table).handle([story.delivery(number, f"o{number}") for number in (1, 2, 3)])

    applied = [told for told in story.told if told.startswith("apply")]
    assert applied == ["apply o1 o2 o3", "apply o1", "apply o2", "apply o3"]
    assert {"1 +ACK", "3 +ACK"} <= set(story.told)
    assert any(told.startswith(end) for told in story.told)
    failed = [span for span in story.spans_named("process orders.created") if span.status.code]
    assert [attributes_of(span)["order.id"] for span in failed] == ["o2"]


async def test_a_row_that_always_breaks_the_commit_is_buried_with_its_order(story: Story) -> None:
    """Exhausted, as any other message would be."""
    whole = story.whole(Table(story, o2=ValueError("odd")))

    for _ in range(3):
        await whole.handle([story.delivery(2, "o2")])

    assert story.told[-2:] == [
        "2 buried as exhausted of o2: failed 3 times, the last time with ValueError: odd",
        "2 +TERM failed 3 times, the last time with ValueError: odd",
    ]


async def test_a_database_that_is_away_hands_the_whole_batch_back(story: Story) -> None:
    """Without trying every row against a database that is not there."""
    whole = story.whole(Table(story, all=NOT_NOW))

    for times in range(1, 11):
        await whole.handle([story.delivery(number, f"o{number}", times=times) for number in (1, 2, 3)])

    assert story.told.count("apply o1 o2 o3") == 10
    assert sum(" nak " in told for told in story.told) == 30
    assert len(story.told) == 40


async def test_a_batch_cut_short_by_a_stop_is_not_answered(story: Story) -> None:
    """Committed or not, it is delivered again; no span stays open."""

    class Stuck(Table):
        async def apply(self, items: Sequence[str]) -> None:
            del items
            await asyncio.sleep(60)

    batch = asyncio.ensure_future(story.whole(Stuck(story)).handle([story.delivery(1, "o1"), story.delivery(2, "o2")]))
    await wait_until(lambda: story.spans.open == 2)
    batch.cancel()
    await asyncio.wait([batch])

    assert not story.told
    assert story.spans.open == 0


async def test_a_message_that_always_fails_leaves_the_broker_in_peace(
    story: Story, connection: Connection, metrics: Metrics
) -> None:
    """With a real broker: it is delivered as often as allowed, is buried once, and the next one is handled."""
    stream = StreamSpec(name="ORDERS", subject="orders.>", dedup_window_s=120)
    spec = ConsumerSpec(stream="ORDERS", name="worker", subject="orders.created", ack_wait_s=30, ack_pending_max=10)

    async def ensure() -> None:
        await ensure_stream(connection, stream)
        await ensure_consumer(connection, spec)

    def handle(delivery: Delivery) -> None:
        story.told.append(delivery.payload.decode())
        if delivery.payload == b"bad":
            raise ValueError("odd")

    await ensure()
    publisher = Publisher(connection, metrics=metrics)
    await publisher.start()
    announcer = Announcer(story.spans.tracer, publisher)
    consumer = Consumer(connection, spec, story.each(handle, deliveries_max=2), restore=ensure, metrics=metrics)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consumer.run())
        for text in ("bad", "good"):
            await announcer.announce(
                subject="orders.created", payload=text.encode(), message_id=text, order_id=text, deadline_s=5
            )
        await wait_until(lambda: any("buried" in told for told in story.told))
        consumer.stop()

    assert story.told.count("bad") == 2
    assert story.told.count("good") == 1
    published = {span.span_id for span in story.spans_named("publish orders.created")}
    assert {span.parent_span_id for span in story.spans_named("process orders.created")} == published


class Speaker(Publisher):
    """A publisher that keeps the headers it was given, and answers or fails."""

    def __init__(self, answer: PubAck | BaseException) -> None:
        self._answer = answer
        self.headers: dict[str, str] = {}

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str], deadline_s: float
    ) -> PubAck:
        """Keep the headers."""
        del subject, payload, message_id, deadline_s
        self.headers = dict(headers)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


async def announced(story: Story, answer: PubAck | BaseException) -> tuple[Speaker, Span]:
    """What an announcement under a span of an order sends and tells."""
    speaker = Speaker(answer)
    story.spans.tracer.begin(
        SpanTemplate("POST /orders", SpanKind.SERVER),
        telemetry.Parent(bytes.fromhex(TRACE), bytes.fromhex(CREATOR), "a=b"),
    ).activate()
    try:
        await Announcer(story.spans.tracer, speaker).announce(
            subject="orders.created", payload=b"", message_id="order-created:o1", order_id="o1", deadline_s=5
        )
    except (PublishUnknownError, asyncio.CancelledError) as error:
        assert error is answer  # noqa: PT017 - what was raised is what the caller gets
    return speaker, story.spans_named("publish orders.created")[0]


async def test_an_announcement_carries_its_trace_and_tells_where_it_is_stored(story: Story) -> None:
    """Under the current span, whose trace state travels, too."""
    speaker, span = await announced(story, PubAck(stream="ORDERS", sequence=7, duplicate=False))

    assert speaker.headers == {"traceparent": f"00-{TRACE}-{span.span_id.hex()}-01", "tracestate": "a=b"}
    assert (span.kind, span.trace_id.hex()) == (Span.SPAN_KIND_PRODUCER, TRACE)
    assert attributes_of(span) == {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "orders.created",
        "messaging.message.id": "order-created:o1",
        "order.id": "o1",
        "messaging.nats.stream.sequence": 7,
    }


@pytest.mark.parametrize("error", [PublishUnknownError("no ack"), asyncio.CancelledError()])
async def test_an_announcement_that_fails_says_so_and_of_which_order(story: Story, error: BaseException) -> None:
    """Being cancelled is no answer either."""
    _, span = await announced(story, error)

    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(span)["order.id"] == "o1"


async def test_a_repeated_announcement_says_that_it_was_one(story: Story) -> None:
    """The server had it already: worth knowing when a story is read."""
    _, span = await announced(story, PubAck(stream="ORDERS", sequence=7, duplicate=True))

    assert "messaging.nats.duplicate" in attributes_of(span)
