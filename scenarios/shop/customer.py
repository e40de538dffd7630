"""A customer of the shop: what is asked, for a seed, and how it is asked over HTTP."""

from __future__ import annotations

import json
import random
import time
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import aiohttp

from harness.records import Operation, Outcome, SpanId, State, TraceId
from harness.system_under_test import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PLACE_WITHIN_S = 10.0
READ_WITHIN_S = 2.0
FINAL = frozenset({"PAID", "DECLINED", "CANCELLED", "REFUNDED"})
ABSENT = "absent"

CANCEL_EVERY = 4
CANCEL_AFTER_MAX = 30
"""A customer who regrets an order does so within this many requests of everybody's."""

_CENTS_MIN, _CENTS_MAX = 100, 50_000
_ACCEPTED, _NOT_FOUND, _OK, _BAD_REQUEST, _SERVER_ERROR = 202, 404, 200, 400, 500


def placing(seed: int) -> Iterator[Request]:
    """Yield an endless stream of orders, a pure function of the seed."""
    chance = random.Random(f"requests:{seed}")  # noqa: S311 - reproducible chance, not a secret
    for number in count():
        yield _order(number, f"s{seed}-{number:06d}", chance)


def placing_and_cancelling(seed: int) -> Iterator[Request]:
    """Yield orders, and cancellations of every `CANCEL_EVERY`th of them: some before it is charged, some after."""
    chance = random.Random(f"cancelling:{seed}")  # noqa: S311 - reproducible chance, not a secret
    regrets: dict[int, str] = {}
    placed = 0
    for number in count():
        if number in regrets:
            yield _asking(number, "cancel", regrets.pop(number), {"reason": "changed my mind"}, chance)
            continue
        key = f"s{seed}-{number:06d}"
        yield _order(number, key, chance)
        placed += 1
        if placed % CANCEL_EVERY == 0:
            when = number + chance.randint(1, CANCEL_AFTER_MAX)
            while when in regrets:
                when += 1
            regrets[when] = key


def cancellation_of(order: Operation) -> Request:
    """Return the request that cancels this order, in a trace of its own."""
    chance = random.Random(f"cancellation:{order.key}:{order.trace_id}")  # noqa: S311 - reproducible, not a secret
    return _asking(order.number, "cancel", order.key, {"reason": "changed my mind"}, chance)


WORKLOADS = {"place": placing, "place-and-cancel": placing_and_cancelling}


def _order(number: int, key: str, chance: random.Random) -> Request:
    cents = chance.randint(_CENTS_MIN, _CENTS_MAX)
    customer_id = f"c{chance.randint(1, 500):03d}"
    order = {"customer_id": customer_id, "total_amount": cents / 100, "currency": "EUR"}
    return _asking(number, "create", key, order, chance)


def _asking(number: int, kind: str, key: str, body: dict[str, object], chance: random.Random) -> Request:
    return Request(
        number=number,
        kind=kind,
        key=key,
        body=json.dumps(body),
        trace_id=f"{chance.getrandbits(128) | 1:032x}",
        span_id=f"{chance.getrandbits(64) | 1:016x}",
    )


def outcome_of(status: int, kind: str = "create") -> Outcome:
    """Say what an answer to a `POST` means.

    202 is a promise (and 200 to a cancellation: it is done already), 4xx a refusal. Every other answer (503 after a
    publish whose acknowledgement did not come) leaves it open whether anything came of it.
    """
    if status == _ACCEPTED or (status == _OK and kind == "cancel"):
        return Outcome.OK
    return Outcome.FAILED if _BAD_REQUEST <= status < _SERVER_ERROR else Outcome.UNKNOWN


class Customer:
    """Places orders and looks at them, over one connection pool."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """Use a session whose base URL is the shop's."""
        self._session = session

    async def place(self, request: Request, intended_ns: int) -> Operation:
        """POST one order or cancellation. A time-out or a broken connection is *unknown*."""
        began_ns = time.time_ns()
        status: int | None = None
        ended_ns: int | None = None
        try:
            async with self._session.post(
                "/orders" if request.kind == "create" else f"/orders/{request.key}/cancel",
                data=request.body,
                headers={
                    "Content-Type": "application/json",
                    "Idempotency-Key": request.key,
                    "traceparent": f"00-{request.trace_id}-{request.span_id}-01",
                },
                timeout=aiohttp.ClientTimeout(total=PLACE_WITHIN_S),
            ) as answer:
                text = await answer.text(errors="replace")
                status, ended_ns = answer.status, time.time_ns()
                outcome = outcome_of(status, request.kind)
                detail = "" if outcome is Outcome.OK else text[:500]
        except aiohttp.ClientConnectorError as error:
            # Nothing was sent: the connection was refused.
            outcome, detail, ended_ns = Outcome.FAILED, str(error), time.time_ns()
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome, detail = Outcome.UNKNOWN, f"{type(error).__name__}: {error}"
        return Operation(
            number=request.number,
            kind=request.kind,
            key=request.key,
            outcome=outcome,
            intended_ns=intended_ns,
            began_ns=began_ns,
            ended_ns=ended_ns,
            trace_id=TraceId(request.trace_id),
            span_id=SpanId(int(request.span_id, 16)),
            status=status,
            detail=detail,
            request=request.body,
        )

    async def read(self, key: str) -> State | None:
        """GET one order; None when the shop cannot be asked now."""
        try:
            async with self._session.get(
                f"/orders/{key}", timeout=aiohttp.ClientTimeout(total=READ_WITHIN_S)
            ) as answer:
                if answer.status == _NOT_FOUND:
                    return State(
                        key=key,
                        state=ABSENT,
                        is_final=False,
                        read_ns=time.time_ns(),
                        settled_ns=None,
                        amount_minor=None,
                    )
                if answer.status != _OK:
                    return None
                order = await answer.json()
                return State(
                    key=key,
                    state=str(order["status"]),
                    is_final=order["status"] in FINAL,
                    read_ns=time.time_ns(),
                    settled_ns=None if order["settled_at_ns"] is None else int(order["settled_at_ns"]),
                    amount_minor=None if order["amount_minor"] is None else int(order["amount_minor"]),
                )
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            # Also an answer that is no order: it says nothing of the order's state.
            return None


@asynccontextmanager
async def customer(base_url: str) -> AsyncIterator[Customer]:
    """Open a customer at the shop's address for the scope."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base_url, connector=connector) as session:
        yield Customer(session)
