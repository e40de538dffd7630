"""Asking the provider again: how often, after which wait, out of which budget, and behind the breaker (P15)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind

from system.metrics import Metrics
from system.payments.breaker import BreakerState, CircuitBreaker
from system.payments.calls import ProviderCalls, watch_breaker
from system.payments.provider_client import ProviderRefusedError, ProviderUnavailableError
from system.payments.retries import ATTEMPTS_MAX, CAP, DEPOSIT, Backoff, RetryBudget
from system.processing import GiveUpError, TryLaterError
from system.telemetry import SpanTemplate
from system.tests.payments_desk import shown
from system.tests.spans import Spans
from system.tests.test_breaker import Clock

AWAY = ProviderUnavailableError("the provider answered 503", reason="server_error")
NO_WAIT = Backoff(first_s=0.0, max_s=0.0)


class Provider:
    """Answers from a list, the last answer for ever."""

    def __init__(self, *answers: str | Exception) -> None:
        self._answers = list(answers)
        self.attempts: list[int] = []

    async def __call__(self, attempt: int) -> str:
        """The next answer."""
        self.attempts.append(attempt)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Desk:
    """Calls with their breaker and budget, none of which waits."""

    def __init__(self, *, failures_max: int = 1_000_000, budget: RetryBudget | None = None) -> None:
        self.metrics = Metrics()
        self.clock = Clock()
        self.woken = 0
        self.breaker = CircuitBreaker(
            failures_max=failures_max,
            clock=self.clock,
            on_change=watch_breaker(self.metrics, on_room=self._wake),
        )
        self.budget = budget or RetryBudget()
        self.calls = ProviderCalls(self.breaker, metrics=self.metrics, budget=self.budget, backoff=NO_WAIT)

    def _wake(self) -> None:
        self.woken += 1

    def count(self, name: str, reason: str = "") -> float:
        """What a metric says."""
        return shown(self.metrics, name, reason)


async def test_a_provider_that_recovers_is_asked_three_times_at_most() -> None:
    """Twice unavailable, then an answer: one delivery, counted."""
    desk, provider = Desk(), Provider(AWAY, AWAY, "captured")

    assert await desk.calls.ask(provider, "o1") == "captured"
    assert provider.attempts == [1, 2, 3]
    assert (desk.count("charge_attempts"), desk.count("charge_retries")) == (3, 2)
    assert desk.count("payment_failures", "server_error") == 2
    assert desk.count("charge_seconds_count") == 3


async def test_a_provider_that_stays_away_is_left_to_a_later_delivery() -> None:
    """After three attempts, with what was seen last."""
    desk, provider = Desk(), Provider(AWAY)

    with pytest.raises(TryLaterError, match="after 3 attempts the provider answered 503") as later:
        await desk.calls.ask(provider, "o1")
    assert later.value.retry_in_s is None
    assert provider.attempts == [1, 2, 3]


async def test_what_is_refused_is_never_asked_again() -> None:
    """A 422 stays one; and it shows that the provider works."""
    desk, provider = Desk(failures_max=0), Provider(ProviderRefusedError("422"))

    with pytest.raises(GiveUpError, match="refuses for good"):
        await desk.calls.ask(provider, "o1")
    assert provider.attempts == [1]
    assert desk.count("payment_failures", "refused") == 1
    assert desk.breaker.state is BreakerState.CLOSED


async def test_without_budget_nothing_is_asked_again() -> None:
    """Once per delivery, and the denial is counted."""
    desk, provider = Desk(budget=RetryBudget(cap=0.0)), Provider(AWAY)

    with pytest.raises(TryLaterError, match="budget"):
        await desk.calls.ask(provider, "o1")
    assert provider.attempts == [1]
    assert desk.count("retries_denied") == 1


async def test_while_the_breaker_is_open_nobody_is_asked_and_deliveries_go_back_until_it_is_half_open() -> None:
    """The provider is in peace; each delivery knows when to come again."""
    desk, provider = Desk(failures_max=5), Provider(AWAY)
    for order in ("o1", "o2"):
        with pytest.raises(TryLaterError):
            await desk.calls.ask(provider, order)
    assert (desk.breaker.state, len(provider.attempts)) == (BreakerState.OPEN, 6)

    desk.clock.now_s += 4.0
    for order in ("o3", "o4"):
        with pytest.raises(TryLaterError, match="is open") as later:
            await desk.calls.ask(provider, order)
        assert later.value.retry_in_s == 11.0
    assert len(provider.attempts) == 6
    assert desk.count("payment_failures", "breaker_open") == 2
    assert (desk.count("breaker_state"), desk.count("breaker_opened")) == (2, 1)


async def test_the_failure_that_opens_the_breaker_ends_its_own_delivery_too() -> None:
    """No wait for a next attempt that would not be admitted."""
    desk, provider = Desk(failures_max=0), Provider(AWAY)

    with pytest.raises(TryLaterError, match="the breaker is open now") as later:
        await desk.calls.ask(provider, "o1")
    assert later.value.retry_in_s == 15.0
    assert provider.attempts == [1]
    assert desk.count("charge_retries") == 0


async def test_half_open_three_deliveries_are_asked_and_the_others_come_again_soon() -> None:
    """And when the three are answered, it closes and whoever pulls is woken."""
    desk = Desk(failures_max=0)
    with pytest.raises(TryLaterError):
        await desk.calls.ask(Provider(AWAY), "o0")
    desk.clock.now_s += 15.0
    answered = asyncio.Event()

    async def slowly(attempt: int) -> int:
        await answered.wait()
        return attempt

    async with asyncio.TaskGroup() as tasks:
        probes = [tasks.create_task(desk.calls.ask(slowly, f"o{n}")) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TryLaterError, match="half-open") as later:
            await desk.calls.ask(slowly, "o4")
        assert later.value.retry_in_s == 0.5
        assert desk.count("breaker_state") == 1
        answered.set()

    assert [probe.result() for probe in probes] == [1, 1, 1]
    assert desk.breaker.state is BreakerState.CLOSED
    assert desk.woken == 2  # half-open, closed
    assert desk.count("breaker_state") == 0


async def test_a_delivery_that_is_cancelled_leaves_its_probe_to_another() -> None:
    """A stop in the middle is no result."""
    desk = Desk(failures_max=0)
    with pytest.raises(TryLaterError):
        await desk.calls.ask(Provider(AWAY), "o0")
    desk.clock.now_s += 15.0

    async def never(attempt: int) -> int:
        await asyncio.Event().wait()
        return attempt

    asking = [asyncio.create_task(desk.calls.ask(never, f"o{n}")) for n in range(3)]
    await asyncio.sleep(0)
    assert desk.breaker.admits == 0
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert (desk.breaker.state, desk.breaker.admits) == (BreakerState.HALF_OPEN, 3)


async def test_the_span_during_which_the_breaker_opens_says_so() -> None:
    """Whoever reads the trace of that order sees why it was handed back."""
    desk, spans = Desk(failures_max=0), Spans()
    span = spans.tracer.begin(SpanTemplate("process orders.created", SpanKind.CONSUMER))
    span.activate()
    with pytest.raises(TryLaterError):
        await desk.calls.ask(Provider(AWAY), "o1")
    span.end()

    (event,) = spans.ended[0].events
    assert event.name == "circuit breaker"
    told = {attribute.key: attribute.value.string_value for attribute in event.attributes}
    assert told == {
        "breaker.name": "PaymentService",
        "breaker.state": "open",
        "breaker.why": "1 calls in a row failed",
    }


@given(
    outcomes=st.lists(st.lists(st.booleans(), min_size=ATTEMPTS_MAX, max_size=ATTEMPTS_MAX), min_size=1, max_size=300)
)
def test_retries_cannot_multiply_with_redeliveries(outcomes: Sequence[Sequence[bool]]) -> None:
    """Whatever fails, requests are at most deliveries, and a fifth of them, and what was saved up.

    Each list is one delivery, be it the first of its message or the hundredth: which attempts would succeed. Compared
    with what three attempts each would make, an outage costs the provider 1.2 requests per delivery, not 3.
    """
    desk = Desk()

    async def deliver() -> None:
        for delivery in outcomes:
            answers = [("captured" if success else AWAY) for success in delivery]
            try:
                await desk.calls.ask(Provider(*answers), "o1")
            except TryLaterError:
                continue

    asyncio.run(deliver())
    requests, deliveries = desk.count("charge_attempts"), len(outcomes)
    assert deliveries <= requests <= ATTEMPTS_MAX * deliveries
    assert requests <= deliveries * (1 + DEPOSIT) + CAP + 1e-6


def test_an_outage_costs_one_request_per_delivery_and_a_fifth_more() -> None:
    """The bound is not only kept, it is reached: retries go on, at a fifth."""
    desk = Desk()

    async def deliver() -> None:
        for _ in range(5000):
            with pytest.raises(TryLaterError):
                await desk.calls.ask(Provider(AWAY), "o1")

    asyncio.run(deliver())
    assert desk.count("charge_attempts") == pytest.approx(5000 * 1.2 + 50, abs=3)
    assert desk.count("retries_denied") > 0


@given(calls=st.lists(st.booleans(), max_size=500))
def test_a_budget_never_holds_more_than_its_cap_nor_less_than_nothing(calls: Sequence[bool]) -> None:
    """True is a first call, False asks for a retry."""
    budget = RetryBudget(deposit=0.2, cap=3.0)
    for is_first in calls:
        before = budget.left
        if is_first:
            budget.first_call()
        else:
            assert budget.take_retry() == (before >= 1.0)
        assert 0.0 <= budget.left <= 3.0


@given(attempt=st.integers(1, 10_000), chance=st.floats(0.0, 1.0))
def test_waits_are_exponential_fully_jittered_and_bounded(attempt: int, chance: float) -> None:
    """From nothing to twice a mean that triples."""
    backoff = Backoff(first_s=0.1, factor=3.0, max_s=5.0)
    mean_s = min(5.0, 0.1 * 3.0 ** min(attempt - 1, 10))
    assert backoff.wait_s(attempt, lambda: chance) == pytest.approx(2 * mean_s * chance)


def test_a_crowd_that_failed_together_does_not_come_back_together() -> None:
    """A thousand waits after the first attempt fill every tenth of their span."""
    chance = random.Random(7)  # noqa: S311 - repeatable
    waits = [Backoff().wait_s(1, chance.random) for _ in range(1000)]
    tenths = [int(wait_s / 0.02) for wait_s in waits]
    assert {tenths.count(tenth) > 50 for tenth in range(10)} == {True}


@pytest.mark.parametrize("wrong", [{"first_s": -1.0}, {"factor": 0.5}, {"max_s": 0.01}])
def test_a_backoff_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    """The message holds the values."""
    with pytest.raises(ValueError, match="Backoff"):
        Backoff(**wrong)


@pytest.mark.parametrize("wrong", [{"deposit": 1.5}, {"deposit": -0.1}, {"cap": -1.0}])
def test_a_budget_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    """The message holds the values."""
    with pytest.raises(ValueError, match="deposit="):
        RetryBudget(**wrong)
