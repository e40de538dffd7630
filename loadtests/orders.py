"""What is asked: orders as a pure function of seed and number, and what an answer to one means.

Promises: the same seed and number give the same order, byte for byte, in any order of asking and on any machine.

Does not: repeat the orders of `scenarios.shop.customer`, nor their keys (`l7-000000` here, `s7-000000` there), so both
can be placed in one run. That generator is a sequence; users here take slots out of turn, so an order must not depend
on the ones before it. One BLAKE2 digest per order is also cheaper than a Mersenne
twister (1.6 against 4.9 µs).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from harness.records import Outcome, SpanId, TraceId

KIND = "create"
PATH = "/orders"

_CENTS_MIN, _CENTS_MAX = 100, 50_000
_CUSTOMERS = 500
_ACCEPTED, _BAD_REQUEST, _SERVER_ERROR = 202, 400, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order before it is sent. key: its id and its idempotency key. body: JSON. span: 16 hex digits."""

    number: int
    key: str
    body: str
    trace_id: TraceId
    span: str

    @property
    def span_id(self) -> SpanId:
        """The span the client sends, as evidence stores it."""
        return SpanId(int(self.span, 16))

    def http(self, host: str) -> bytes:
        """Return the whole request as it goes over the wire. host: `name:port`."""
        return (
            f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self.body)}\r\nIdempotency-Key: {self.key}\r\n"
            f"traceparent: 00-{self.trace_id}-{self.span}-01\r\n\r\n{self.body}"
        ).encode("ascii")


def order(seed: int, number: int) -> Order:
    """Return the order of that number for that seed."""
    # An all-zero trace or span id would be invalid; it is as likely as a broken hash.
    digest = hashlib.blake2b(b"orders:%d:%d" % (seed, number), digest_size=32).hexdigest()
    cents = _CENTS_MIN + int(digest[48:56], 16) % (_CENTS_MAX - _CENTS_MIN + 1)
    customer = 1 + int(digest[56:64], 16) % _CUSTOMERS
    return Order(
        number=number,
        key=f"l{seed}-{number:06d}",
        body=f'{{"customer_id": "c{customer:03d}", "total_amount": {cents / 100}, "currency": "EUR"}}',
        trace_id=TraceId(digest[:32]),
        span=digest[32:48],
    )


def outcome_of(status: int) -> Outcome:
    """Say what an answer to `POST /orders` means; the same rule as the harness's own customer.

    202 is a promise, 4xx a refusal; every other answer leaves it open whether the order exists.
    """
    if status == _ACCEPTED:
        return Outcome.OK
    return Outcome.FAILED if _BAD_REQUEST <= status < _SERVER_ERROR else Outcome.UNKNOWN
