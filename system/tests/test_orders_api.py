"""The HTTP face of orders, without a broker: what is accepted, and that a refusal publishes nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import NoOpTracer

from system.jetstream import PublishUnknownError
from system.metrics import Metrics
from system.orders.api import OrdersApi
from system.orders.intake import ConflictError, Intake, NewOrder
from system.orders.store import StoredOrder
from system.web import Request, Response

GOOD = {"customer_id": "c1", "total_amount": 12.5}


class Desk(Intake):
    """An intake that only remembers what it was given, and fails as it is told."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.accepted: list[NewOrder] = []
        self._failure = failure

    async def accept(self, new: NewOrder) -> None:
        """Remember it."""
        if self._failure is not None:
            raise self._failure
        self.accepted.append(new)

    def find(self, order_id: str) -> StoredOrder | None:
        """What was remembered."""
        for order in self.accepted:
            if order.order_id == order_id:
                return StoredOrder(
                    order_id=order_id,
                    customer_id=order.customer_id,
                    amount_minor=order.amount_minor,
                    currency=order.currency,
                    status="PENDING",
                    created_at_ns=1,
                    settled_at_ns=None,
                    payment_id=None,
                )
        return None


def api_over(desk: Desk) -> OrdersApi:
    """The API on a desk."""
    return OrdersApi(desk, tracer=NoOpTracer(), metrics=Metrics())


async def post(desk: Desk, body: bytes, **headers: str) -> Response:
    """`POST /orders` with this body."""
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(
        method="POST", path="/orders", headers={"content-type": "application/json", **given_headers}, body=body
    )
    return await api_over(desk)(request)


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

    assert desk.accepted == [NewOrder(order_id="my-order_1", customer_id="c1", amount_minor=1250, currency="CHF")]


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
        ("GET", "/", 404),
        ("POST", "/order", 404),
    ],
)
async def test_other_methods_and_paths_are_problems(method: str, path: str, status: int) -> None:
    """405 says what would do; 404 says nothing more."""
    response = await api_over(Desk())(Request(method=method, path=path, headers={}, body=b""))

    assert response.status == status
    assert ("allow" in dict(response.headers)) is (status == 405)


async def test_an_order_can_be_asked_for() -> None:
    """All members are there, those not known yet as null."""
    desk = Desk()
    await post(desk, json.dumps(GOOD).encode(), idempotency_key="o1")
    response = await api_over(desk)(Request(method="GET", path="/orders/o1", headers={}, body=b""))

    assert json.loads(response.body) == {
        "order_id": "o1",
        "customer_id": "c1",
        "status": "PENDING",
        "amount_minor": 1250,
        "currency": "EUR",
        "created_at_ns": 1,
        "settled_at_ns": None,
        "payment_id": None,
    }


async def test_an_unknown_outcome_is_a_503_that_names_the_order() -> None:
    """The client can ask for it, or repeat under the same key."""
    response = await post(Desk(PublishUnknownError("no ack")), json.dumps(GOOD).encode(), idempotency_key="o1")

    assert response.status == 503
    assert json.loads(response.body)["order_id"] == "o1"
    assert int(dict(response.headers)["retry-after"]) >= 1


async def test_another_order_under_the_same_key_is_a_conflict() -> None:
    """409, and it is said which."""
    response = await post(Desk(ConflictError()), json.dumps(GOOD).encode(), idempotency_key="o1")

    assert response.status == 409
    assert json.loads(response.body)["order_id"] == "o1"
