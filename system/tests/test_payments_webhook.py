"""`POST /webhooks/provider`: what is signed is recorded, once; everything else is refused."""

from __future__ import annotations

import hmac
import json

import pytest

from system.database import DatabaseError, DatabaseRowError
from system.payments.webhook import Webhook
from system.provider.webhooks import signature
from system.tests.payments_desk import Desk
from system.web import Request, Response

SECRET = "a secret"  # noqa: S105 - no secret at all
CAPTURED = {
    "kind": "captured",
    "order_id": "o1",
    "charge_id": "ch_1",
    "refund_id": "",
    "amount_minor": 1250,
    "currency": "EUR",
    "at_ns": 3,
}
REFUNDED = {**CAPTURED, "kind": "refunded", "refund_id": "re_1"}


class Till(Desk):
    """Payments, told things by a provider."""

    def __init__(self, secret: str | None = SECRET) -> None:
        super().__init__()
        self._webhook = Webhook(self.store, secret, tracer=self.spans.tracer, metrics=self.metrics)

    async def told(
        self, what: object, *, signed: str | None = None, method: str = "POST", path: str = "/webhooks/provider"
    ) -> Response:
        """The answer. signed: the signature, by default the right one."""
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        if signed is None:
            signed = signature(SECRET.encode(), body)
        headers = {"provider-signature": signed, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        return await self._webhook(Request(method=method, path=path, headers=headers, body=body))


async def test_what_the_provider_tells_is_recorded_before_it_is_answered() -> None:
    """And a redelivered order finds it and asks nobody."""
    till = Till()
    assert (await till.told(CAPTURED)).status == 204
    found = await till.row()
    assert found is not None
    assert found.decided_at_ns > 0
    assert (found.status, found.charge_id, found.amount_minor) == ("PAID", "ch_1", 1250)
    till.story.clear()

    assert await till.order() == ["announce payment-processed:o1", "ack"]
    assert till.count("webhooks_received", "captured") == 1


async def test_a_webhook_that_is_told_twice_or_late_changes_nothing() -> None:
    """Neither what is recorded nor that it was announced."""
    till = Till()
    await till.record("PAID", announced_s_ago=1.0)
    before = await till.row()
    for _ in range(3):
        assert (await till.told(CAPTURED)).status == 204
    assert await till.row() == before


async def test_a_refund_that_is_told_is_recorded_and_announced_by_its_cancellation() -> None:
    """P3: also the capture that comes after it changes nothing."""
    till = Till()
    assert (await till.told(REFUNDED)).status == 204
    assert (await till.told(CAPTURED)).status == 204
    found = await till.row()
    assert found is not None
    assert (found.status, found.refund_id) == ("REFUNDED", "re_1")
    till.story.clear()

    assert await till.cancellation() == ["announce payment-refunded:o1", "ack"]
    assert till.speaker.announced[0].reason == "changed my mind"


@pytest.mark.parametrize("signed", ["", "0" * 64, "rubbish", hmac.digest(b"another secret", b"{}", "sha256").hex()])
async def test_what_is_not_signed_with_our_secret_is_not_looked_at(signed: str) -> None:
    """401, and nothing is recorded."""
    till = Till()
    assert (await till.told(CAPTURED, signed=signed)).status == 401
    assert await till.row() is None
    assert till.count("webhooks_received", "refused") == 1


async def test_a_signature_holds_for_its_body_only() -> None:
    """Nobody can replay one with another amount."""
    till = Till()
    good = signature(SECRET.encode(), json.dumps(CAPTURED).encode())
    assert (await till.told({**CAPTURED, "amount_minor": 1}, signed=good)).status == 401


async def test_without_a_secret_there_is_no_such_place() -> None:
    """404, as everywhere else; the same for other paths."""
    assert (await Till(secret=None).told(CAPTURED)).status == 404
    assert (await Till().told(CAPTURED, path="/")).status == 404


async def test_it_can_only_be_posted_to() -> None:
    """405 says so."""
    answer = await Till().told(CAPTURED, method="GET")
    assert (answer.status, answer.headers) == (405, (("allow", "POST"),))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        {},
        {**CAPTURED, "kind": "imagined"},
        {**CAPTURED, "order_id": ""},
        {**CAPTURED, "order_id": "two words"},
        {**CAPTURED, "charge_id": ""},
        {**CAPTURED, "amount_minor": 0},
        {**CAPTURED, "amount_minor": 12.5},
        {**CAPTURED, "amount_minor": 2**70},
        {**CAPTURED, "currency": "euro"},
        {**CAPTURED, "refund_id": "re_1"},
        {**REFUNDED, "refund_id": ""},
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused_though_it_is_signed(body: object) -> None:
    """422: the provider need not try again."""
    till = Till()
    assert (await till.told(body)).status == 422
    assert await till.row() is None


async def test_members_that_this_version_does_not_know_are_ignored() -> None:
    """A newer provider may say more."""
    assert (await Till().told({**CAPTURED, "mood": "good"})).status == 204


async def test_what_cannot_be_recorded_now_is_to_be_told_again() -> None:
    """503 with a time; what never can be, 422."""
    till = Till()
    till.database.write_failure = DatabaseError("the disk is full")
    answer = await till.told(CAPTURED)
    assert (answer.status, answer.headers) == (503, (("retry-after", "1"),))
    till.database.write_failure = DatabaseRowError("no such value")
    assert (await till.told(CAPTURED)).status == 422


async def test_it_is_part_of_the_trace_of_whoever_charged() -> None:
    """P10: with the order and the answer."""
    till = Till()
    await till.told(CAPTURED)

    (span,) = till.spans.ended
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (
        "POST /webhooks/provider",
        "a" * 32,
        "b" * 16,
    )
    attributes = {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
    assert (attributes["order.id"], attributes["webhook.kind"]) == ("o1", "captured")
    assert attributes["http.response.status_code"] == 204
