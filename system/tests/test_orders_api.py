"""The HTTP face of orders, without a broker: what is accepted, and that a refusal publishes nothing (P4)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from system.database import DatabaseError
from system.jetstream import PublishRefusedError, PublishUnavailableError, PublishUnknownError
from system.metrics import Metrics
from system.orders.api import OrdersApi
from system.orders.intake import ConflictError, Intake, NewOrder, NoSuchOrderError, NothingToCancelError
from system.orders.recent import TooManyRecentError
from system.orders.store import StoredOrder
from system.tests.spans import Spans
from system.tests.test_telemetry import attributes_of
from system.web import Request, Response

GOOD = {"customer_id": "c1", "total_amount": 12.5}


class Desk(Intake):
    """An intake that only remembers what it was given, and fails as it is told."""

    def __init__(self, failure: Exception | None = None, *, status: str = "PENDING") -> None:
        self.accepted: list[NewOrder] = []
        self.cancelled: list[tuple[str, str]] = []
        self.spans = Spans()
        self._failure = failure
        self._status = status

    async def accept(self, new: NewOrder) -> str:
        """Remember it."""
        if self._failure is not None:
            raise self._failure
        self.accepted.append(new)
        return self._status

    async def cancel(self, order_id: str, reason: str) -> StoredOrder:
        """Remember it."""
        if self._failure is not None:
            raise self._failure
        self.cancelled.append((order_id, reason))
        return StoredOrder(order_id, "c1", 1250, "EUR", self._status, 1)

    async def find(self, order_id: str) -> StoredOrder | None:
        """What was remembered."""
        if self._failure is not None:
            raise self._failure
        for order in self.accepted:
            if order.order_id == order_id:
                return StoredOrder(order_id, order.customer_id, order.amount_minor, order.currency, self._status, 1)
        return None


def api_over(desk: Desk) -> OrdersApi:
    """The API on a desk."""
    return OrdersApi(desk, tracer=desk.spans.tracer, metrics=Metrics())


async def answer_of(api: OrdersApi, request: Request) -> Response:
    """The response, waited for if need be."""
    answer = api(request)
    return answer if isinstance(answer, Response) else await answer


async def post(desk: Desk, body: bytes, *, path: str = "/orders", **headers: str) -> Response:
    """A `POST` with this body."""
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(
        method="POST", path=path, headers={"content-type": "application/json", **given_headers}, body=body
    )
    return await answer_of(api_over(desk), request)


async def test_a_good_order_is_accepted_under_an_id_of_its_own() -> None:
    """202, where to look, and exactly the order that was asked for."""
    desk = Desk()
    response = await post(desk, json.dumps(GOOD).encode())

    (order,) = desk.accepted
    assert response.status == 202
    assert json.loads(response.body) == {"order_id": order.order_id, "status": "PENDING"}
    assert ("location", f"/orders/{order.order_id}") in response.headers
    assert (order.customer_id, order.amount_minor, order.currency) == ("c1", 1250, "EUR")


async def test_the_idempotency_key_is_the_orders_id() -> None:
    """So whoever lost the answer can ask for the order."""
    desk = Desk()
    await post(desk, json.dumps({**GOOD, "currency": "CHF"}).encode(), idempotency_key="my-order_1")

    assert desk.accepted == [
        NewOrder(order_id="my-order_1", is_named=True, customer_id="c1", amount_minor=1250, currency="CHF")
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"customer_id":"\xff","total_amount":1}', 400),
        (b'{"customer_id":"c","total_amount":NaN}', 400),
        (b'{"customer_id":"c","total_amount":Infinity}', 400),
        (b'{"customer_id":"c","total_amount":1e999}', 422),
        (b'{"customer_id":"c","total_amount":1' + b"0" * 400 + b"}", 422),
        (b'{"customer_id":"c","total_amount":-1}', 422),
        (b'{"customer_id":"c","total_amount":0}', 422),
        (b'{"customer_id":"c","total_amount":1.001}', 422),
        (b'{"customer_id":"c","total_amount":1000000.01}', 422),
        (b'{"customer_id":"c","total_amount":"1"}', 422),
        (b'{"customer_id":"c","total_amount":true}', 422),
        (b'{"customer_id":"c","total_amount":null}', 422),
        (b'{"customer_id":"c"}', 422),
        (b'{"total_amount":1}', 422),
        (b'{"customer_id":7,"total_amount":1}', 422),
        (b'{"customer_id":"","total_amount":1}', 422),
        (b'{"customer_id":"c\\u0000","total_amount":1}', 422),
        (b'{"customer_id":"' + b"c" * 65 + b'","total_amount":1}', 422),
        (b'{"customer_id":"c","total_amount":1,"currency":"euro"}', 422),
        (b'{"customer_id":"c","total_amount":1,"currency":null}', 422),
        (b"[]", 422),
        (b"null", 422),
        (b"[" * 60_000, 422),
        (b'{"customer_id":"c","total_amount":1,"x":' + b"[" * 60_000, 400),
        (b'{"customer_id":"\\ud800","total_amount":1}', 400),
    ],
)
async def test_a_bad_body_is_a_problem_and_nothing_is_published(body: bytes, status: int) -> None:
    """4xx, a problem document, and the desk heard nothing."""
    desk = Desk()
    response = await post(desk, body)

    assert response.status == status
    assert response.content_type == "application/problem+json"
    assert json.loads(response.body)["status"] == status
    assert desk.accepted == []


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=80),
        lambda inner: st.dictionaries(
            st.sampled_from(["customer_id", "total_amount", "currency"]) | st.text(max_size=3), inner
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode())
)
async def test_whatever_is_posted_is_an_order_or_a_4xx(body: bytes) -> None:
    """Never a 5xx, and never an order that breaks a bound."""
    desk = Desk()
    response = await post(desk, body)

    assert response.status == 202 or 400 <= response.status < 500
    assert len(desk.accepted) == (response.status == 202)
    for order in desk.accepted:
        assert 1 <= order.amount_minor <= 100_000_000
        assert 1 <= len(order.customer_id) <= 64
        assert order.customer_id.encode().decode() == order.customer_id


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 202),
        ("Application/JSON; charset=UTF-8", 202),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_only_json_in_utf_8_is_read(content_type: str, status: int) -> None:
    """Everything else is 415."""
    assert (await post(Desk(), json.dumps(GOOD).encode(), content_type=content_type)).status == status


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 65, "a/b", "one, two"])
async def test_a_key_that_can_be_no_id_is_refused(key: str) -> None:
    """1 to 64 of the letters that need no escaping anywhere."""
    desk = Desk()

    assert (await post(desk, json.dumps(GOOD).encode(), idempotency_key=key)).status == 400
    assert desk.accepted == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/orders", 405),
        ("DELETE", "/orders/o1", 405),
        ("GET", "/orders/unknown", 404),
        ("GET", "/orders/", 404),
        ("GET", "/orders/a/b", 404),
        ("POST", "/orders/a/b", 404),
        ("POST", "/orders/o1", 405),
        ("GET", "/orders/o1/cancel", 405),
        ("POST", "/orders/o1/cancel/", 404),
        ("POST", "/orders/o 1/cancel", 404),
        ("POST", "/orders//cancel", 404),
        ("GET", "/", 404),
        ("POST", "/order", 404),
    ],
)
async def test_other_methods_and_paths_are_problems(method: str, path: str, status: int) -> None:
    """405 says what would do; 404 says nothing more."""
    response = await answer_of(api_over(Desk()), Request(method=method, path=path, headers={}, body=b""))

    assert response.status == status
    assert ("allow" in dict(response.headers)) is (status == 405)


async def test_an_order_can_be_asked_for() -> None:
    """All members are there, those not known yet as null."""
    desk = Desk()
    await post(desk, json.dumps(GOOD).encode(), idempotency_key="o1")
    response = await answer_of(api_over(desk), Request(method="GET", path="/orders/o1", headers={}, body=b""))

    assert json.loads(response.body) == {
        "order_id": "o1",
        "customer_id": "c1",
        "status": "PENDING",
        "amount_minor": 1250,
        "currency": "EUR",
        "created_at_ns": 1,
        "settled_at_ns": None,
        "payment_id": None,
        "refund_id": None,
        "reason": None,
    }


async def test_the_same_order_again_is_answered_with_its_status_of_now() -> None:
    """Not PENDING, when it is long paid."""
    response = await post(Desk(status="PAID"), json.dumps(GOOD).encode(), idempotency_key="o1")

    assert (response.status, json.loads(response.body)) == (202, {"order_id": "o1", "status": "PAID"})


async def test_an_unknown_outcome_is_a_503_that_names_the_order() -> None:
    """The client can ask for it, or repeat under the same key."""
    desk = Desk(PublishUnknownError("no ack"))
    response = await post(desk, json.dumps(GOOD).encode(), idempotency_key="o1")

    assert response.status == 503
    assert json.loads(response.body)["order_id"] == "o1"
    assert int(dict(response.headers)["retry-after"]) >= 1
    assert [event.name for event in desk.spans.ended[0].events] == ["outcome unknown"]


@pytest.mark.parametrize(
    "failure",
    [
        PublishRefusedError("full"),
        PublishUnavailableError("busy"),
        TooManyRecentError(),
        DatabaseError("away"),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("path", ["/orders", "/orders/o1/cancel"])
async def test_what_certainly_was_not_taken_is_a_503_without_an_order(failure: Exception, path: str) -> None:
    """P5: nothing is left of it, and when to try again is said."""
    response = await post(Desk(failure), json.dumps(GOOD).encode(), path=path, idempotency_key="o1")

    assert response.status == 503
    assert "order_id" not in json.loads(response.body)
    assert int(dict(response.headers)["retry-after"]) >= 1


async def test_an_order_that_cannot_be_read_now_is_a_503() -> None:
    """It is not 404: it may well be there."""
    response = await answer_of(
        api_over(Desk(DatabaseError("away"))), Request(method="GET", path="/orders/o1", headers={}, body=b"")
    )

    assert (response.status, dict(response.headers)["retry-after"]) == (503, "1")


async def test_another_order_under_the_same_key_is_a_conflict() -> None:
    """409, and it is said which."""
    response = await post(Desk(ConflictError()), json.dumps(GOOD).encode(), idempotency_key="o1")

    assert response.status == 409
    assert json.loads(response.body)["order_id"] == "o1"


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"", "", ""),
        (b"", "application/json", ""),
        (b"{}", "application/json", ""),
        (b'{"reason":"too late","more":1}', "application/json", "too late"),
        (b'{"reason":"' + b"x" * 200 + b'"}', "application/json", "x" * 200),
    ],
)
async def test_an_order_can_be_cancelled_with_a_reason_or_without(body: bytes, content_type: str, reason: str) -> None:
    """202 with the status of now: what becomes of it is told by the order."""
    desk = Desk()
    response = await post(desk, body, path="/orders/o1/cancel", content_type=content_type)

    assert (response.status, json.loads(response.body)) == (202, {"order_id": "o1", "status": "PENDING"})
    assert ("location", "/orders/o1") in response.headers
    assert desk.cancelled == [("o1", reason)]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"reason":"\xff"}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"[]", "application/json", 422),
        (b'{"reason":null}', "application/json", 422),
        (b'{"reason":"\\u0000"}', "application/json", 422),
        (b'{"reason":"' + b"x" * 201 + b'"}', "application/json", 422),
    ],
)
async def test_a_bad_cancellation_is_a_problem_and_cancels_nothing(body: bytes, content_type: str, status: int) -> None:
    """4xx, and the desk heard nothing."""
    desk = Desk()
    response = await post(desk, body, path="/orders/o1/cancel", content_type=content_type)

    assert (response.status, response.content_type) == (status, "application/problem+json")
    assert desk.cancelled == []


@pytest.mark.parametrize(("state", "status"), [("PENDING", 202), ("PAID", 202), ("CANCELLED", 200), ("REFUNDED", 200)])
async def test_the_answer_to_a_cancellation_says_whether_it_is_done(state: str, status: int) -> None:
    """200 when there is nothing left to do."""
    response = await post(Desk(status=state), b"", path="/orders/o1/cancel")

    assert (response.status, json.loads(response.body)["status"]) == (status, state)


@pytest.mark.parametrize(
    ("failure", "status"),
    [(NoSuchOrderError(), 404), (NothingToCancelError(), 409), (PublishUnknownError("no ack"), 503)],
    ids=lambda value: type(value).__name__,
)
async def test_a_cancellation_that_is_not_accepted_names_the_order(failure: Exception, status: int) -> None:
    """There is none; it was declined; nobody can tell."""
    response = await post(Desk(failure), b"", path="/orders/o1/cancel")

    assert (response.status, json.loads(response.body)["order_id"]) == (status, "o1")


@pytest.mark.parametrize(
    ("path", "name", "failure", "status", "is_error"),
    [
        ("/orders", "POST /orders", None, 202, False),
        ("/orders", "POST /orders", ConflictError(), 409, False),
        ("/orders", "POST /orders", PublishUnknownError("no ack"), 503, True),
        ("/orders/o1/cancel", "POST /orders/{id}/cancel", None, 202, False),
        ("/orders/o1/cancel", "POST /orders/{id}/cancel", NoSuchOrderError(), 404, False),
        ("/orders/o1/cancel", "POST /orders/{id}/cancel", DatabaseError("away"), 503, True),
    ],
)
async def test_every_post_is_a_span_that_continues_the_callers_trace(
    path: str, name: str, failure: Exception | None, status: int, is_error: bool
) -> None:
    """With the order, what was answered, and an error only where it is ours."""
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    desk = Desk(failure)
    await post(desk, json.dumps(GOOD).encode(), path=path, idempotency_key="o1", traceparent=f"00-{trace}-{caller}-01")

    (span,) = desk.spans.ended
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (name, trace, caller)
    attributes = attributes_of(span)
    assert (attributes["order.id"], attributes["http.response.status_code"]) == ("o1", status)
    assert attributes["http.request.method"] == "POST"
    assert (span.status.code == span.status.STATUS_CODE_ERROR) is is_error


async def test_a_request_without_a_trace_begins_one_and_not_within_the_last() -> None:
    """Two requests that one task answers are two traces."""
    desk = Desk()
    api = api_over(desk)
    request = Request(
        method="POST", path="/orders", headers={"content-type": "application/json"}, body=json.dumps(GOOD).encode()
    )
    await answer_of(api, request)
    await answer_of(api, request)

    first, second = desk.spans.ended
    assert first.trace_id != second.trace_id
    assert {first.parent_span_id, second.parent_span_id} == {b""}


async def test_what_breaks_is_told_by_the_span_too() -> None:
    """The server answers 500; the span does not stay open."""
    desk = Desk(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await post(desk, json.dumps(GOOD).encode())

    (span,) = desk.spans.ended
    assert span.status.code == span.status.STATUS_CODE_ERROR


async def test_what_is_accepted_and_what_is_refused_is_counted() -> None:
    """By status, and how long answers take."""
    metrics = Metrics()
    desk = Desk()
    api = OrdersApi(desk, tracer=desk.spans.tracer, metrics=metrics)
    headers = {"content-type": "application/json", "idempotency-key": "o1"}
    for body in (json.dumps(GOOD).encode(), b"{", b"[]"):
        await answer_of(api, Request(method="POST", path="/orders", headers=headers, body=body))
    for body in (b"", b"{"):
        await answer_of(api, Request(method="POST", path="/orders/o1/cancel", headers=headers, body=body))

    text = metrics.rendered().decode()
    for line in (
        "orders_accepted_total 1.0",
        'orders_refused_total{status="400"} 1.0',
        'orders_refused_total{status="422"} 1.0',
        "order_accept_seconds_count 3.0",
        "cancellations_accepted_total 1.0",
        'cancellations_refused_total{status="400"} 1.0',
    ):
        assert line in text
