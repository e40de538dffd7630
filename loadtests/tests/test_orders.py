"""Orders are a pure function of seed and number."""

from __future__ import annotations

import json
from itertools import islice

import httptools
import pytest

from harness.records import Outcome
from loadtests.orders import order, outcome_of
from scenarios.shop.customer import outcome_of as outcome_of_harness
from scenarios.shop.customer import placing


def test_the_same_seed_asks_for_the_same_orders_in_any_order_of_asking() -> None:
    """Users take slots out of turn, so no order may depend on the one before."""
    forth = [order(7, number) for number in range(100)]
    back = [order(7, number) for number in reversed(range(100))]

    assert forth == back[::-1]
    assert order(7, 3) == order(7, 3)
    assert order(8, 3) != order(7, 3)
    assert order(8, 3).body != order(7, 3).body


def test_no_two_orders_share_a_key_a_trace_or_a_span() -> None:
    """Ten thousand of them."""
    orders = [order(1, number) for number in range(10_000)]

    for what in ("key", "trace_id", "span"):
        assert len({getattr(each, what) for each in orders}) == len(orders)


def test_an_order_has_the_shape_of_the_harnesss_own() -> None:
    """Same fields, same kinds of values: a run by Locust is judged like any other."""
    for ours, theirs in zip((order(5, number) for number in range(50)), islice(placing(5), 50), strict=True):
        asked, expected = json.loads(ours.body), json.loads(theirs.body)
        assert ours.key != theirs.key, "one key with two bodies would be two orders that look like one"
        assert len(ours.key) == len(theirs.key)
        assert asked.keys() == expected.keys()
        assert 1.0 <= asked["total_amount"] <= 500.0
        assert round(asked["total_amount"] * 100) == pytest.approx(asked["total_amount"] * 100)
        assert (len(ours.trace_id), len(ours.span)) == (len(theirs.trace_id), len(theirs.span_id))
        assert 0 < ours.span_id < 2**64


def test_the_request_is_http_that_a_parser_accepts() -> None:
    """Headers and body as they should arrive."""
    asked = order(1, 2)
    seen = _Seen()

    httptools.HttpRequestParser(seen).feed_data(asked.http("127.0.0.1:80"))

    assert seen.is_whole
    assert seen.body.decode() == asked.body
    assert seen.headers["idempotency-key"] == asked.key
    assert seen.headers["traceparent"] == f"00-{asked.trace_id}-{asked.span}-01"
    assert seen.headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 400, 404, 409, 422, 429, 499, 500, 502, 503, 504])
def test_an_answer_means_what_it_means_to_the_harnesss_own_customer(status: int) -> None:
    """One rule, written twice because importing the other one under gevent would bring aiohttp along."""
    assert outcome_of(status) is outcome_of_harness(status)


def test_only_202_is_ok_and_only_4xx_is_failed() -> None:
    """A 503 after a publish whose acknowledgement did not come leaves it open whether the order exists."""
    assert [outcome_of(status) for status in (202, 422, 503, 200)] == [
        Outcome.OK,
        Outcome.FAILED,
        Outcome.UNKNOWN,
        Outcome.UNKNOWN,
    ]


class _Seen:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.is_whole = True
