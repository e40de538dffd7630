"""What stands in front of handlers: limits, probes, and the description of the interface."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from system.metrics import Metrics
from system.readiness import Probes, Readiness, nothing_else
from system.tests.parts import ask, wait_until
from system.tests.serving import Echo, serving
from system.web import Admission, Handler, Limits, OpenApi, Request, Response

POST = Request(method="POST", path="/orders", headers={}, body=b"")


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def at_once(request: Request) -> Response:
    """Answer with no coroutine."""
    if request.path == "/broken":
        raise RuntimeError("as the test wants it")
    return Response(status=200)


def now(handler: Handler, request: Request) -> Response:
    """The response of a handler that has it at once."""
    response = handler(request)
    assert isinstance(response, Response)
    return response


async def test_more_at_once_than_the_limit_is_refused_and_reading_is_not() -> None:
    """503 with a time to try again and no order id (P16); whoever reads passes; one answered makes room for one."""
    echo, metrics = Echo(), Metrics()
    async with serving(Admission(Limits(in_flight_max=2), echo, metrics)) as (_, port), asyncio.TaskGroup() as tasks:
        echo.gate.clear()
        begun = [tasks.create_task(ask(port, "POST", "/begun")) for _ in range(2)]
        await wait_until(lambda: len(echo.seen) == 2)
        refused = await ask(port, "POST", "/refused")
        read = tasks.create_task(ask(port, "GET", "/read"))
        await wait_until(lambda: len(echo.seen) == 3)
        echo.gate.set()
        assert [(await each).status for each in begun] == [200, 200]
        assert (await read).status == 200
        assert (await ask(port, "POST", "/again")).status == 200

    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert "order_id" not in msgspec.json.decode(refused.body)
    rendered = metrics.rendered().decode()
    assert 'requests_refused_total{reason="in_flight"} 1.0' in rendered
    assert "requests_in_flight 0.0" in rendered


@pytest.mark.parametrize("handler", [Echo(), at_once])
async def test_a_handler_that_fails_gives_its_room_back(handler: Handler) -> None:
    """Whether it fails at once or later."""
    async with serving(Admission(Limits(in_flight_max=1), handler, Metrics())) as (_, port):
        statuses = [(await ask(port, "POST", path)).status for path in ("/broken", "/broken", "/")]

    assert statuses == [500, 500, 200]


def test_faster_than_the_limit_is_refused_until_time_has_passed() -> None:
    """Two a second, with a second's worth in reserve (P16)."""
    clock, metrics = Clock(), Metrics()
    admission = Admission(Limits(in_flight_max=9, rate_max_per_s=2), at_once, metrics, clock=clock)

    statuses = [now(admission, POST).status for _ in range(3)]
    clock.now_s += 0.5
    statuses += [now(admission, POST).status for _ in range(2)]

    assert statuses == [200, 200, 429, 200, 429]
    assert 'requests_refused_total{reason="rate"} 2.0' in metrics.rendered().decode()


def test_a_limit_of_next_to_nothing_is_still_a_limit() -> None:
    """One in longer than anybody can count: come again in an hour."""
    admission = Admission(Limits(in_flight_max=9, rate_max_per_s=1e-310), at_once, Metrics(), clock=Clock())

    assert now(admission, POST).status == 200
    refused = now(admission, POST)
    assert (refused.status, dict(refused.headers)["retry-after"]) == (429, "3600")


def test_a_refusal_for_speed_says_when_there_is_room_again() -> None:
    """One in four seconds: four seconds on it is taken, a moment before it is not."""
    clock = Clock()
    admission = Admission(Limits(in_flight_max=9, rate_max_per_s=0.25), at_once, Metrics(), clock=clock)

    first, second = now(admission, POST), now(admission, POST)
    clock.now_s += 3.9
    early = now(admission, POST)
    clock.now_s += 0.2
    later = now(admission, POST)

    assert (first.status, second.status, early.status, later.status) == (200, 429, 429, 200)
    assert ("retry-after", "4") in second.headers
    assert ("retry-after", "1") in early.headers


@given(rate=st.floats(0.1, 1000), pauses_s=st.lists(st.floats(0, 3), max_size=60))
def test_no_more_than_the_rate_and_the_reserve_get_through(rate: float, pauses_s: list[float]) -> None:
    """However requests and pauses alternate."""
    clock = Clock()
    admission = Admission(Limits(in_flight_max=9, rate_max_per_s=rate), at_once, Metrics(), clock=clock)
    taken = 0
    for pause_s in pauses_s:
        clock.now_s += pause_s
        taken += sum(now(admission, POST).status == 200 for _ in range(20))

    assert taken <= max(rate, 1) + rate * sum(pauses_s) + 1e-6


@pytest.mark.parametrize(
    ("in_flight_max", "rate_max_per_s"), [(0, 0.0), (1, -1.0), (1, float("inf")), (1, float("nan"))]
)
def test_limits_that_make_no_sense_are_refused(in_flight_max: int, rate_max_per_s: float) -> None:
    """When they are made, not when it matters."""
    with pytest.raises(ValueError, match="must be"):
        Limits(in_flight_max=in_flight_max, rate_max_per_s=rate_max_per_s)


async def test_the_description_is_served_and_everything_else_passed_on() -> None:
    """GET and HEAD only."""
    async with serving(OpenApi({"openapi": "3.1.0"}, Echo())) as (_, port):
        described = await ask(port, "GET", "/openapi.json")
        changed = await ask(port, "POST", "/openapi.json")
        other = await ask(port, "GET", "/other")

    assert (described.headers["content-type"], described.body) == ("application/json", b'{"openapi":"3.1.0"}')
    assert (changed.status, changed.headers["allow"]) == (405, "GET, HEAD")
    assert other.body == b"/other"


async def test_probes_say_what_is_missing_and_the_rest_is_passed_on() -> None:
    """Ready only while every condition holds, and never again once stopping."""
    readiness = Readiness()
    is_up = False
    readiness.require("database", lambda: is_up)
    async with serving(Probes(readiness, Metrics(), nothing_else)) as (_, port):
        alive = await ask(port, "GET", "/healthz")
        missing = await ask(port, "GET", "/readyz")
        is_up = True
        ready = await ask(port, "GET", "/readyz")
        readiness.stop()
        stopping = await ask(port, "GET", "/readyz")
        changed = await ask(port, "POST", "/readyz")
        other = await ask(port, "GET", "/other")

    assert [reply.status for reply in (alive, missing, ready, stopping, changed, other)] == [
        200,
        503,
        200,
        503,
        405,
        404,
    ]
    assert missing.body == b'{"ready":false,"missing":["database"]}'
    assert stopping.body == b'{"ready":false,"missing":["stopping"]}'
