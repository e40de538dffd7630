"""The story of one payment: charge, announce, ack; and every way it can stop in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from opentelemetry.trace import NoOpTracer

from system import events
from system.announcing import Announcer
from system.events import OrderCreated, PaymentProcessed, PaymentStatus, UndecodableError
from system.jetstream import Delivery, PubAck, PublishUnknownError
from system.metrics import Metrics
from system.payments.handler import ATTEMPTS_MAX, PaymentHandler
from system.payments.provider_client import (
    Captured,
    Declined,
    ProviderClient,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from system.processing import GiveUpError, TracedHandler, TryLaterError
from system.settings import Address
from system.tests.parts import free_port
from system.web import HttpClient, Request, Response, Server

ORDER = OrderCreated(order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)
CAPTURED = Captured(charge_id="ch_1", replayed=False)

Outcome = Captured | Declined | Exception


class Recorded(Delivery):
    """A delivery that writes its answers into a story."""

    def __init__(self, story: list[str], payload: bytes, *, times_delivered: int = 1) -> None:
        self._story = story
        self.subject, self.stream, self.consumer = "orders.created", "ORDERS", "payment-processor"
        self.payload = payload
        self.headers = {}
        self.sequence = 1
        self.times_delivered = times_delivered

    async def ack(self) -> None:
        """It is part of the story."""
        self._story.append("ack")

    async def nak(self, delay_s: float) -> None:
        """It is part of the story."""
        self._story.append(f"nak after {'some' if delay_s > 0 else 'no'} delay")

    async def term(self, reason: str) -> None:
        """It is part of the story."""
        self._story.append(f"term {reason}")


class Scripted(ProviderClient):
    """A provider that answers from a list."""

    def __init__(self, story: list[str], outcomes: Sequence[Outcome]) -> None:
        self._story = story
        self._outcomes = list(outcomes)

    async def charge(self, order: OrderCreated, *, attempt: int) -> Captured | Declined:
        """The next answer of the list."""
        self._story.append(f"charge {self.idempotency_key(order)} {attempt}")
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Loudspeaker(Announcer):
    """An announcer that writes into a story, or fails."""

    def __init__(self, story: list[str], failure: Exception | None = None) -> None:
        self._story = story
        self._failure = failure
        self.announced: list[PaymentProcessed] = []

    async def announce(
        self,
        *,
        subject: str,
        payload: bytes,
        message_id: str,
        order_id: str,
        deadline_s: float,
    ) -> PubAck:
        """The event is part of the story."""
        assert (subject, order_id) == ("payments.processed", ORDER.order_id)
        assert deadline_s > 0
        self._story.append(f"announce {message_id}")
        if self._failure is not None:
            raise self._failure
        self.announced.append(events.decode_payment_processed(payload))
        return PubAck(stream="PAYMENTS", sequence=1, duplicate=False)


class Case:
    """One delivery with everything around it scripted."""

    def __init__(self, *outcomes: Outcome, announcing: Exception | None = None, payload: bytes | None = None) -> None:
        self.story: list[str] = []
        self.speaker = Loudspeaker(self.story, announcing)
        self.handler = PaymentHandler(Scripted(self.story, outcomes), self.speaker, metrics=Metrics())
        content = events.encode_order_created(ORDER) if payload is None else payload
        self.delivery = Recorded(self.story, content)

    async def run(self) -> None:
        """The handler alone: what it raises is raised."""
        await self.handler.handle(self.delivery)

    async def run_traced(self) -> None:
        """As the consumer runs it: whatever is raised becomes an answer."""
        await TracedHandler(self.handler, tracer=NoOpTracer(), metrics=Metrics()).handle(self.delivery)


async def test_the_ack_comes_after_the_announcement_and_that_after_the_charge() -> None:
    """The order of the three is the whole promise."""
    case = Case(CAPTURED)
    await case.run()

    assert case.story == ["charge o1 1", "announce payment-processed:o1", "ack"]
    (event,) = case.speaker.announced
    assert (event.status, event.payment_id, event.amount_minor) == (PaymentStatus.PAID, "ch_1", 1250)


async def test_a_decline_is_announced_like_any_outcome() -> None:
    """It is final, not an error."""
    case = Case(Declined(reason="no money"))
    await case.run()

    (event,) = case.speaker.announced
    assert (event.status, event.payment_id, event.reason) == (PaymentStatus.DECLINED, "", "no money")
    assert case.story[-1] == "ack"


async def test_a_provider_that_recovers_is_asked_again_under_the_same_key() -> None:
    """Twice unavailable, then captured: one story, one ack."""
    case = Case(ProviderUnavailableError("503"), ProviderUnavailableError("lost"), CAPTURED)
    await case.run()

    assert case.story == [
        "charge o1 1",
        "charge o1 2",
        "charge o1 3",
        "announce payment-processed:o1",
        "ack",
    ]


async def test_a_provider_that_stays_away_leads_to_a_nak_with_a_delay() -> None:
    """Three attempts, no more, nothing announced."""
    case = Case(*[ProviderUnavailableError("503")] * ATTEMPTS_MAX)
    await case.run_traced()

    assert case.story == ["charge o1 1", "charge o1 2", "charge o1 3", "nak after some delay"]


async def test_an_announcement_of_which_nobody_can_tell_is_no_reason_to_ack() -> None:
    """The redelivery will find the charge and announce again."""
    case = Case(CAPTURED, announcing=PublishUnknownError("no ack"))
    await case.run_traced()

    assert case.story == ["charge o1 1", "announce payment-processed:o1", "nak after some delay"]
    with pytest.raises(TryLaterError):
        await Case(CAPTURED, announcing=PublishUnknownError("no ack")).run()


async def test_a_charge_the_provider_will_never_make_is_terminated() -> None:
    """The key belongs to another charge: no retry can change that."""
    case = Case(ProviderRefusedError("422"))
    await case.run_traced()

    assert case.story[0] == "charge o1 1"
    assert case.story[1].startswith("term order o1 cannot be charged")
    with pytest.raises(GiveUpError):
        await Case(ProviderRefusedError("422")).run()


async def test_an_undecodable_message_is_terminated_and_charges_nothing() -> None:
    """Until there is a dead-letter stream."""
    case = Case(payload=b"\xff\xff")
    await case.run_traced()

    assert len(case.story) == 1
    assert case.story[0].startswith("term ")
    with pytest.raises(UndecodableError):
        await Case(payload=b"\xff\xff").run()


async def test_a_bug_in_a_handler_loses_no_message() -> None:
    """Whatever is raised, the broker is asked to deliver again."""
    case = Case(RuntimeError("as the test wants it"))
    await case.run_traced()

    assert case.story == ["charge o1 1", "nak after some delay"]


class Till:
    """A provider that answers with one status and remembers what it was sent."""

    def __init__(self, status: int, body: bytes) -> None:
        self._response = Response(status=status, body=body)
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Response:
        """Remember and answer."""
        self.requests.append(request)
        return self._response


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (201, b'{"charge_id":"ch_1","status":"captured"}', Captured(charge_id="ch_1", replayed=False)),
        (200, b'{"charge_id":"ch_1","status":"captured"}', Captured(charge_id="ch_1", replayed=True)),
        (402, b'{"detail":"no money"}', Declined(reason="no money")),
        (201, b"rubbish", ProviderUnavailableError),
        (429, b"", ProviderUnavailableError),
        (500, b"", ProviderUnavailableError),
        (503, b"{}", ProviderUnavailableError),
        (400, b"", ProviderRefusedError),
        (422, b"", ProviderRefusedError),
    ],
)
async def test_each_answer_of_the_provider_has_one_meaning(
    status: int, body: bytes, expected: Captured | Declined | type[Exception]
) -> None:
    """And every request carries the order's id as its idempotency key."""
    till, port = Till(status, body), free_port()
    async with Server(Address(host="127.0.0.1", port=port), till):
        http = HttpClient(Address(host="127.0.0.1", port=port))
        client = ProviderClient(http, tracer=NoOpTracer())
        if isinstance(expected, type):
            with pytest.raises(expected):
                await client.charge(ORDER, attempt=1)
        else:
            assert await client.charge(ORDER, attempt=1) == expected
        http.close()

    (request,) = till.requests
    assert request.headers["idempotency-key"] == "o1"
    assert request.body == b'{"order_id":"o1","amount_minor":1250,"currency":"EUR"}'


async def test_a_provider_that_cannot_be_reached_is_unavailable() -> None:
    """A refused connection is worth another try."""
    client = ProviderClient(HttpClient(Address(host="127.0.0.1", port=free_port())), tracer=NoOpTracer())

    async with asyncio.timeout(5):
        with pytest.raises(ProviderUnavailableError):
            await client.charge(ORDER, attempt=1)
