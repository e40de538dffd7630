"""The story of one payment: charge, record, announce, ack; and every way it can stop in the middle (P2, P3, P9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from msgspec import structs
from msgspec.structs import replace
from opentelemetry.trace import SpanKind

from system.database import DatabaseError, DatabaseRowError, DatabaseUnknownError
from system.events import PaymentStatus
from system.jetstream import PublishRefusedError, PublishUnavailableError, PublishUnknownError
from system.metrics import Metrics
from system.payments.outbox import REPEAT_WITHIN_S
from system.payments.provider_client import (
    Bill,
    Captured,
    ChargeOutcome,
    Declined,
    ProviderClient,
    ProviderRefusedError,
    ProviderUnavailableError,
    Refunded,
    RefundOutcome,
    Voided,
)
from system.payments.work import ID_MAX_LENGTH
from system.settings import Address
from system.telemetry import Parent, SpanTemplate
from system.tests.parts import free_port
from system.tests.payments_desk import ORDER, Desk
from system.tests.spans import Spans
from system.web import HttpClient, Request, Response, Server

CAPTURED = Captured(charge_id="ch_1", replayed=False)
AWAY = ProviderUnavailableError("the provider answered 503", reason="server_error")
BILL = Bill(order_id="o1", amount_minor=1250, currency="EUR")


async def test_the_ack_comes_after_the_announcement_that_after_the_row_and_that_after_the_charge() -> None:
    """The order of the four is the whole promise."""
    desk = Desk(CAPTURED)

    assert await desk.order() == ["charge o1 1", "record PAID", "announce payment-processed:o1", "ack"]
    (event,) = desk.speaker.announced
    assert (event.status, event.payment_id, event.amount_minor) == (PaymentStatus.PAID, "ch_1", 1250)
    row = await desk.row()
    assert row is not None
    assert (row.status, row.charge_id, row.announced_at_ns is not None) == ("PAID", "ch_1", True)
    assert event.processed_at_ns == row.decided_at_ns
    assert (desk.count("payments", "PAID"), desk.count("outbox_depth")) == (1, 0)


async def test_a_decline_is_recorded_and_announced_like_any_outcome() -> None:
    """It is final, not an error."""
    desk = Desk(Declined(reason="no money"))

    assert await desk.order() == ["charge o1 1", "record DECLINED", "announce payment-processed:o1", "ack"]
    (event,) = desk.speaker.announced
    assert (event.status, event.payment_id, event.reason) == (PaymentStatus.DECLINED, "", "no money")


async def test_a_charge_that_was_ruled_out_makes_the_order_cancelled() -> None:
    """P13: under the message id that the cancellation's own announcement has, so that it is one message."""
    desk = Desk(Voided())

    assert await desk.order() == ["charge o1 1", "record CANCELLED", "announce payment-cancelled:o1", "ack"]
    (event,) = desk.speaker.announced
    assert (event.status, event.payment_id) == (PaymentStatus.CANCELLED, "")


async def test_a_provider_that_recovers_is_asked_again_under_the_same_key() -> None:
    """Twice unavailable, then captured: one story, one ack."""
    desk = Desk(AWAY, AWAY, CAPTURED)
    story = await desk.order()

    assert story[:3] == ["charge o1 1", "charge o1 2", "charge o1 3"]
    assert story[-1] == "ack"


async def test_a_provider_that_stays_away_leads_to_a_nak_with_a_delay() -> None:
    """Three attempts, no more, nothing recorded, nothing announced."""
    desk = Desk(AWAY, AWAY, AWAY)

    assert await desk.order() == ["charge o1 1", "charge o1 2", "charge o1 3", "nak for 0 s"]
    assert await desk.row() is None


async def test_while_the_breaker_is_open_orders_go_back_until_it_lets_somebody_through() -> None:
    """P15: without a request; an outage buries nobody (P14), however often it is delivered meanwhile."""
    desk = Desk(*[AWAY] * 6)
    await desk.order()
    await desk.order()

    for _ in range(30):
        (answer,) = await desk.order()
        assert 13 <= float(answer.removeprefix("nak for ").removesuffix(" s")) <= 19


@pytest.mark.parametrize("status", ["PAID", "DECLINED", "CANCELLED"])
async def test_an_order_whose_end_is_recorded_is_announced_without_asking_the_provider(status: str) -> None:
    """The redelivery after a crash between row and announcement; or after a webhook, or another replica."""
    desk = Desk()
    await desk.record(status)
    story = await desk.order()

    event = "payment-cancelled:o1" if status == "CANCELLED" else "payment-processed:o1"
    assert story == [f"announce {event}", "ack"]
    assert desk.speaker.announced[0].processed_at_ns == 5  # as recorded: the same bytes, however often


async def test_what_was_announced_a_moment_ago_is_announced_again() -> None:
    """The broker absorbs it, unless it lost the message together with the ack: then it is needed."""
    desk = Desk()
    await desk.record("PAID", announced_s_ago=REPEAT_WITHIN_S - 5)

    assert await desk.order() == ["announce payment-processed:o1", "ack"]


async def test_what_was_announced_long_ago_is_only_acked() -> None:
    """The broker would not know any more that it has it."""
    desk = Desk()
    await desk.record("PAID", announced_s_ago=REPEAT_WITHIN_S + 5)

    assert await desk.order() == ["ack"]


async def test_a_refunded_order_that_comes_again_is_announced_as_the_charge_it_was() -> None:
    """The refund is announced by whoever handles the cancellation; nobody knows whether the charge ever was."""
    desk = Desk()
    await desk.record("REFUNDED", announced_s_ago=1.0)

    assert await desk.order() == ["announce payment-processed:o1", "ack"]
    (event,) = desk.speaker.announced
    assert (event.status, event.payment_id, event.refund_id) == (PaymentStatus.PAID, "ch_1", "")
    row = await desk.row()
    assert row is not None
    assert row.status == "REFUNDED"


async def test_another_order_under_a_recorded_id_is_a_dead_letter() -> None:
    """P2: it is neither charged nor told that it was."""
    desk = Desk()
    await desk.record("PAID", amount_minor=99)

    assert await desk.order() == [
        "bury as poison: order o1 over 1250 EUR is recorded as PAID over 99 EUR",
        "term order o1 over 1250 EUR is recorded as PAID over 99 EUR",
    ]


@pytest.mark.parametrize("error", [PublishUnknownError, PublishUnavailableError, PublishRefusedError])
async def test_an_announcement_that_may_not_be_stored_is_no_reason_to_ack(error: type[Exception]) -> None:
    """The redelivery finds the row and announces; also a full stream is an outage, and no reason for a dead letter."""
    desk = Desk(CAPTURED)
    desk.speaker.failure = error("as the test wants it")
    for _ in range(5):
        story = await desk.order()
        assert story[-2:] == ["announce payment-processed:o1", "nak for 0 s"]
    assert desk.count("outbox_depth") == 0
    row = await desk.row()
    assert row is not None
    assert row.announced_at_ns is None

    desk.speaker.failure = None
    assert await desk.order() == ["announce payment-processed:o1", "ack"]


async def test_a_database_that_cannot_be_asked_keeps_everything_from_beginning() -> None:
    """P9: nothing is charged that could not be recorded; it costs time, no order."""
    desk = Desk()
    desk.database.read_failure = DatabaseError("the connection is gone")
    for _ in range(5):
        assert await desk.order() == ["nak for 0 s"]


@pytest.mark.parametrize("error", [DatabaseError("the disk is full"), DatabaseUnknownError("the connection broke")])
async def test_a_charge_that_could_not_be_recorded_is_not_announced_and_comes_again(error: DatabaseError) -> None:
    """P9: the provider is asked again, under the same key, and answers what it did."""
    desk = Desk(CAPTURED, structs.replace(CAPTURED, replayed=True))
    desk.database.write_failure = error
    assert await desk.order() == ["charge o1 1", "nak for 0 s"]

    desk.database.write_failure = None
    assert (await desk.order())[1:] == ["record PAID", "announce payment-processed:o1", "ack"]


async def test_a_row_that_the_database_will_never_take_is_a_dead_letter() -> None:
    """Whoever looks into it finds the charge in the ledger, and can replay it."""
    desk = Desk(CAPTURED)
    desk.database.write_failure = DatabaseRowError("no such value")

    assert (await desk.order())[1] == "bury as poison: order o1 cannot be recorded: no such value"


async def test_a_note_that_cannot_be_written_costs_nothing_but_an_announcement() -> None:
    """The order is done."""
    desk = Desk()
    await desk.record("PAID")
    desk.database.write_failure = DatabaseError("the disk is full")

    assert await desk.order() == ["announce payment-processed:o1", "ack"]
    assert await desk.order() == ["announce payment-processed:o1", "ack"]


async def test_a_charge_the_provider_will_never_make_is_a_dead_letter() -> None:
    """The key belongs to another charge: no retry can change that (P14)."""
    desk = Desk(ProviderRefusedError("the provider answered 422"))

    reason = "order o1: the provider refuses for good: the provider answered 422"
    assert await desk.order() == ["charge o1 1", f"bury as poison: {reason}", f"term {reason}"]


async def test_an_undecodable_message_is_a_dead_letter_and_charges_nothing() -> None:
    """P14: kept, not lost."""
    desk = Desk()
    story = await desk.deliver(desk.payments, "orders.created", b"\xff\xff")

    assert [line.partition(":")[0].partition(" ")[0] for line in story] == ["bury", "term"]


@pytest.mark.parametrize(
    "order_id", ["", "two words", "o1\r\nx-admin: 1", "größe", "\x00", "x" * (ID_MAX_LENGTH + 1)], ids=repr
)
async def test_an_id_that_would_be_no_header_is_a_dead_letter_and_charges_nothing(order_id: str) -> None:
    """It becomes one of the request to the provider, and of the announcement; a stranger may have published it."""
    desk = Desk()
    story = await desk.order(replace(ORDER, order_id=order_id))

    assert story[0].startswith("bury as poison: ")
    assert story[1].startswith("term ")


async def test_a_bug_in_a_handler_loses_no_message() -> None:
    """Whatever is raised, the broker is asked to deliver again; and it is no result for the breaker."""
    desk = Desk(RuntimeError("as the test wants it"))

    assert await desk.order() == ["charge o1 1", "nak for 0 s"]


async def test_the_spans_of_a_payment_stand_under_the_delivery() -> None:
    """P10: receive and settle stand alone, what is done for the order is one tree."""
    till, port, spans = Till(201, b'{"charge_id":"ch_1","status":"captured"}'), free_port(), Spans()
    caller = Parent(b"\x0a" * 16, b"\x0b" * 8, "vendor=1")
    root = spans.tracer.begin(SpanTemplate("process orders.created", SpanKind.CONSUMER), caller)
    root.activate()
    async with Server(Address(host="127.0.0.1", port=port), till):
        http = HttpClient(Address(host="127.0.0.1", port=port))
        await ProviderClient(http, tracer=spans.tracer).charge(ORDER, attempt=2)
        root.end()
        http.close()

    charge, process = spans.ended
    assert charge.parent_span_id == process.span_id
    attributes = {each.key: each.value.string_value or each.value.int_value for each in charge.attributes}
    assert attributes | {"telemetry.seq": 0} == {
        "telemetry.seq": 0,
        "http.request.method": "POST",
        "url.path": "/charges",
        "order.id": "o1",
        "http.request.resend_count": 1,
        "http.response.status_code": 201,
    }
    headers = till.requests[0].headers
    assert headers["traceparent"].split("-")[1:3] == ["0a" * 16, charge.span_id.hex()]
    assert headers["tracestate"] == "vendor=1"


class Till:
    """A provider that answers with one status and remembers what it was sent."""

    def __init__(self, status: int, body: bytes) -> None:
        self._response = Response(status=status, body=body)
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Response:
        """Remember and answer."""
        self.requests.append(request)
        return self._response


async def answer_to(
    ask: Callable[[ProviderClient], object], status: int, body: bytes
) -> tuple[object, Request, list[str]]:
    """What the client makes of an answer, the request it made, and what its span says went wrong."""
    till, port, spans = Till(status, body), free_port(), Spans()
    async with Server(Address(host="127.0.0.1", port=port), till):
        http = HttpClient(Address(host="127.0.0.1", port=port))
        client = ProviderClient(http, tracer=spans.tracer)
        try:
            found: object = await ask(client)  # type: ignore[misc]  # a coroutine of either kind
        except (ProviderUnavailableError, ProviderRefusedError) as error:
            found = error
        http.close()
    (request,) = till.requests
    return found, request, [span.status.message for span in spans.ended]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (201, b'{"charge_id":"ch_1","status":"captured"}', Captured(charge_id="ch_1", replayed=False)),
        (200, b'{"charge_id":"ch_1","status":"captured"}', Captured(charge_id="ch_1", replayed=True)),
        (402, b'{"detail":"no money"}', Declined(reason="no money")),
        (409, b'{"type":"voided","detail":"ruled out"}', Voided()),
        (409, b'{"type":"about:blank","detail":"busy"}', "unexpected"),
        (201, b"rubbish", "nonsense"),
        (200, b"{}", "nonsense"),
        (201, b'{"charge_id":"ch_1"}', "nonsense"),
        (201, b'{"charge_id":"","status":"captured"}', "nonsense"),
        (200, b'{"charge_id":"ch_1","status":"pending"}', "nonsense"),
        (402, b"<html>pay for your proxy</html>", "nonsense"),
        (201, b'{"charge_id":"\xff"}', "nonsense"),
        (429, b"", "too_many"),
        (500, b"", "server_error"),
        (503, b"{}", "server_error"),
        (400, b'{"detail":"no such currency"}', ProviderRefusedError),
        (422, b'{"detail":"another amount"}', ProviderRefusedError),
        # What is not of the provider, or about the request, is no order's fault: a proxy, a login, a path.
        *[(status, b"<html>no</html>", "unexpected") for status in (204, 302, 400, 401, 403, 404, 408, 422)],
    ],
)
async def test_each_answer_to_a_charge_has_one_meaning(
    status: int, body: bytes, expected: ChargeOutcome | type[Exception] | str
) -> None:
    """And every request carries the order's id as its idempotency key."""
    found, request, told = await answer_to(lambda client: client.charge(ORDER, attempt=1), status, body)

    check(found, expected, told)
    assert (request.path, request.headers["idempotency-key"]) == ("/charges", "o1")
    assert request.body == b'{"order_id":"o1","amount_minor":1250,"currency":"EUR"}'


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            201,
            b'{"status":"refunded","refund_id":"re_1","charge_id":"ch_1"}',
            Refunded(refund_id="re_1", charge_id="ch_1"),
        ),
        (200, b'{"status":"refunded","refund_id":"re_1"}', Refunded(refund_id="re_1", charge_id="")),
        (201, b'{"status":"voided"}', Voided()),
        (200, b'{"status":"declined"}', Declined(reason="the card had been declined")),
        (201, b'{"status":"refunded"}', "nonsense"),
        (200, b'{"status":"pending"}', "nonsense"),
        (201, b"rubbish", "nonsense"),
        (429, b"", "too_many"),
        (500, b"", "server_error"),
        (409, b'{"type":"voided"}', "unexpected"),
        (422, b'{"detail":"another amount"}', ProviderRefusedError),
        (422, b"", "unexpected"),
        (404, b'{"detail":"there is nothing"}', "unexpected"),
    ],
)
async def test_each_answer_to_a_refund_has_one_meaning(
    status: int, body: bytes, expected: RefundOutcome | type[Exception] | str
) -> None:
    """P3: nothing is taken for a refund that does not say so; the key is the refund's own."""
    found, request, told = await answer_to(lambda client: client.refund(BILL, attempt=1), status, body)

    check(found, expected, told)
    assert (request.path, request.headers["idempotency-key"]) == ("/refunds", "refund:o1")
    assert request.body == b'{"order_id":"o1","amount_minor":1250,"currency":"EUR","charge_key":"o1"}'


def check(found: object, expected: object, told: list[str]) -> None:
    """The outcome, or the kind of error; only a failure is told as one."""
    if isinstance(expected, str):
        assert isinstance(found, ProviderUnavailableError)
        assert found.reason == expected
    elif isinstance(expected, type):
        assert isinstance(found, expected)
    else:
        assert found == expected
    assert told == [str(found) if isinstance(found, Exception) else ""]


async def test_a_provider_that_cannot_be_reached_is_unavailable() -> None:
    """A refused connection is worth another try."""
    spans = Spans()
    client = ProviderClient(HttpClient(Address(host="127.0.0.1", port=free_port())), tracer=spans.tracer)

    async with asyncio.timeout(5):
        with pytest.raises(ProviderUnavailableError) as away:
            await client.charge(ORDER, attempt=1)
    assert away.value.reason == "not_sent"


async def test_a_provider_that_does_not_answer_is_unavailable_after_the_time_it_was_given() -> None:
    """And nobody can tell whether the money moved."""
    port, spans, released = free_port(), Spans(), asyncio.Event()

    async def silent(request: Request) -> Response:
        del request
        await released.wait()
        return Response(status=201)

    async with Server(Address(host="127.0.0.1", port=port), silent):
        http = HttpClient(Address(host="127.0.0.1", port=port))
        client = ProviderClient(http, tracer=spans.tracer, within_s=0.1)
        with pytest.raises(ProviderUnavailableError) as away:
            await client.charge(ORDER, attempt=1)
        released.set()
        http.close()
    assert away.value.reason == "answer_lost"
    assert spans.open == 0


async def test_a_charge_that_is_cancelled_ends_its_span() -> None:
    """P10: or it would look as if the process had died in it."""
    port, spans, asked, released = free_port(), Spans(), asyncio.Event(), asyncio.Event()

    async def silent(request: Request) -> Response:
        del request
        asked.set()
        await released.wait()
        return Response(status=201)

    async with Server(Address(host="127.0.0.1", port=port), silent):
        http = HttpClient(Address(host="127.0.0.1", port=port))
        charging = asyncio.ensure_future(ProviderClient(http, tracer=spans.tracer).charge(ORDER, attempt=1))
        await asked.wait()
        charging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await charging
        assert [span.status.message for span in spans.ended] == ["abandoned"]
        released.set()
        http.close()


async def test_what_is_measured_has_its_names(metrics: Metrics) -> None:
    """The README and dashboards go by them."""
    desk = Desk(AWAY, CAPTURED)
    await desk.order()

    text = desk.metrics.rendered().decode()
    for name in (
        'payments_total{status="PAID"} 1.0',
        'payment_failures_total{reason="server_error"} 1.0',
        "charge_attempts_total 2.0",
        "charge_retries_total 1.0",
        "retries_denied_total 0.0",
        "charge_seconds_count 2.0",
        "outbox_depth 0.0",
    ):
        assert name in text
