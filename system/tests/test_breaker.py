"""The circuit breaker against a model that keeps everything that happened, and case by case (P15)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from system.payments.breaker import BUSY_RETRY_S, BreakerOpenError, BreakerState, Call, Change, CircuitBreaker

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN

Result = Literal["succeeded", "failed", "abandoned"]


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


@dataclass(slots=True)
class Era:
    """What happened between two changes of state: how many calls began, and each result in its order."""

    state: BreakerState
    began_at_s: float
    begun: int = 0
    results: list[Result] = field(default_factory=list)

    @property
    def failures_in_a_row(self) -> int:
        """How many there are at the end, abandoned calls left out."""
        told = [result for result in self.results if result != "abandoned"]
        return next((n for n, result in enumerate(reversed(told)) if result == "succeeded"), len(told))


@dataclass(slots=True)
class Model:
    """A breaker that only keeps a record, and reads the state from it."""

    failures_max: int
    open_s: float
    probes_max: int
    clock: Clock
    eras: list[Era] = field(default_factory=lambda: [Era(CLOSED, 0.0)])

    @property
    def era(self) -> Era:
        """The present one."""
        last = self.eras[-1]
        if last.state is OPEN and self.clock.now_s >= last.began_at_s + self.open_s:
            self.eras.append(Era(HALF_OPEN, self.clock.now_s))
        return self.eras[-1]

    @property
    def admits(self) -> int | None:
        """How many calls may begin now."""
        match self.era.state:
            case BreakerState.CLOSED:
                return None
            case BreakerState.OPEN:
                return 0
        return self.probes_max - self.era.begun + self.era.results.count("abandoned")

    def begin(self) -> Era | None:
        """The era that a call belongs to; None if it is not admitted."""
        if self.admits == 0:
            return None
        self.era.begun += 1
        return self.era

    def end(self, era: Era, result: Result) -> None:
        """A call of that era came to this."""
        era.results.append(result)
        if era is not self.eras[-1]:
            return  # whatever it says is about the past
        failures = era.failures_in_a_row
        if failures > (self.failures_max if era.state is CLOSED else 0):
            self.eras.append(Era(OPEN, self.clock.now_s))
        elif era.state is HALF_OPEN and era.results.count("succeeded") == self.probes_max:
            self.eras.append(Era(CLOSED, self.clock.now_s))


class AgainstItsModel(RuleBasedStateMachine):
    """Calls that begin, overlap, and come to their ends late; and time."""

    calls: Bundle[tuple[Call, Era]] = Bundle("calls")

    @initialize(failures_max=st.integers(0, 5), open_s=st.sampled_from([0.5, 15.0]), probes_max=st.integers(1, 3))
    def build(self, failures_max: int, open_s: float, probes_max: int) -> None:
        """A breaker and its model, of any size."""
        self.clock = Clock()
        self.model = Model(failures_max, open_s, probes_max, self.clock)
        self.changes: list[Change] = []
        self.breaker = CircuitBreaker(
            failures_max=failures_max,
            open_s=open_s,
            probes_max=probes_max,
            clock=self.clock,
            on_change=self.changes.append,
        )

    @rule(target=calls)
    def begin(self) -> tuple[Call, Era] | MultipleResults[tuple[Call, Era]]:
        """A call is admitted by both, or by neither."""
        era = self.model.begin()
        if era is not None:
            return (self.breaker.begin(), era)
        with pytest.raises(BreakerOpenError) as refused:
            self.breaker.begin()
        assert 0 < refused.value.retry_in_s <= max(self.model.open_s, BUSY_RETRY_S)
        return multiple()

    @rule(call=consumes(calls), result=st.sampled_from(["succeeded", "failed", "failed", "failed", "abandoned"]))
    def end(self, call: tuple[Call, Era], result: Result) -> None:
        """A call of whatever era comes to its end."""
        number, era = call
        getattr(self.breaker, result)(number)
        self.model.end(era, result)

    @rule(share=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    def let_time_pass(self, share: float) -> None:
        """Some of the time that it stays open, or all of it."""
        self.clock.now_s += share * self.model.open_s

    @invariant()
    def is_as_the_model_says(self) -> None:
        """Same state, same room, same history."""
        assert self.breaker.admits == self.model.admits
        assert self.breaker.state is self.model.era.state
        assert [change.after for change in self.changes] == [era.state for era in self.model.eras[1:]]

    @invariant()
    def never_lets_more_through_than_it_says(self) -> None:
        """None while open; while half-open no more probes that may have reached the provider than `probes_max`."""
        for era in self.model.eras:
            assert era.state is not OPEN or era.begun == 0
            assert era.state is not HALF_OPEN or era.begun - era.results.count("abandoned") <= self.model.probes_max


# A state machine's run is a unittest; the settings belong to it.
TestAgainstItsModel = AgainstItsModel.TestCase
TestAgainstItsModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def changes() -> list[Change]:
    """What the breaker told."""
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[Change]) -> CircuitBreaker:
    """The breaker as the service has it by default."""
    return CircuitBreaker(clock=clock, on_change=changes.append)


def fail(breaker: CircuitBreaker, times: int) -> None:
    """So many calls, one after the other, each fails."""
    for _ in range(times):
        breaker.failed(breaker.begin())


def opened(breaker: CircuitBreaker, clock: Clock) -> None:
    """It was opened, and its time is over."""
    fail(breaker, 6)
    clock.now_s += 15.0


def test_it_opens_on_more_than_five_failures_in_a_row(breaker: CircuitBreaker) -> None:
    """Five are borne, the sixth is one too many."""
    fail(breaker, 5)
    assert breaker.state is CLOSED
    fail(breaker, 1)
    assert breaker.state is OPEN


def test_a_success_starts_the_count_anew(breaker: CircuitBreaker) -> None:
    """In a row means in a row."""
    fail(breaker, 5)
    breaker.succeeded(breaker.begin())
    fail(breaker, 5)
    assert breaker.state is CLOSED


def test_an_abandoned_call_is_no_result_at_all(breaker: CircuitBreaker) -> None:
    """Neither a failure, nor the success that would start the count anew."""
    fail(breaker, 5)
    breaker.abandoned(breaker.begin())
    assert breaker.state is CLOSED
    fail(breaker, 1)
    assert breaker.state is OPEN


def test_it_stays_open_for_fifteen_seconds_to_the_tick(breaker: CircuitBreaker, clock: Clock) -> None:
    """And says how long it still takes."""
    fail(breaker, 6)
    clock.now_s += 14.75
    with pytest.raises(BreakerOpenError) as refused:
        breaker.begin()
    assert refused.value.retry_in_s == breaker.retry_in_s == 0.25
    assert str(refused.value) == "the circuit breaker PaymentService is open"
    clock.now_s += 0.25
    assert breaker.state is HALF_OPEN
    breaker.begin()


def test_half_open_it_admits_three_calls_and_no_fourth(breaker: CircuitBreaker, clock: Clock) -> None:
    """Also when the first of them has succeeded already: three are enough to know."""
    opened(breaker, clock)
    first, _, _ = (breaker.begin() for _ in range(3))
    with pytest.raises(BreakerOpenError, match="half-open, 3 probes are under way"):
        breaker.begin()
    breaker.succeeded(first)
    with pytest.raises(BreakerOpenError):
        breaker.begin()
    assert breaker.admits == 0
    assert breaker.retry_in_s == BUSY_RETRY_S


def test_it_closes_when_all_three_probes_succeeded(breaker: CircuitBreaker, clock: Clock) -> None:
    """One answer may be luck."""
    opened(breaker, clock)
    for _ in range(2):
        breaker.succeeded(breaker.begin())
    assert (breaker.state, breaker.admits) == (HALF_OPEN, 1)
    breaker.succeeded(breaker.begin())
    assert (breaker.state, breaker.admits) == (CLOSED, None)


def test_one_probe_that_fails_opens_it_for_the_whole_time_again(breaker: CircuitBreaker, clock: Clock) -> None:
    """Counted from the failure."""
    opened(breaker, clock)
    good, bad = breaker.begin(), breaker.begin()
    breaker.succeeded(good)
    clock.now_s += 5.0
    breaker.failed(bad)
    assert (breaker.state, breaker.retry_in_s) == (OPEN, 15.0)


def test_an_abandoned_probe_leaves_its_place_to_another(breaker: CircuitBreaker, clock: Clock) -> None:
    """Or a restart of whoever waits for it would keep the breaker half-open for ever."""
    opened(breaker, clock)
    calls = [breaker.begin() for _ in range(3)]
    breaker.abandoned(calls[0])
    assert breaker.admits == 1
    breaker.begin()


def test_a_late_result_says_nothing_about_now(breaker: CircuitBreaker, clock: Clock) -> None:
    """Calls that began before it opened end while it is half-open, and closed again: they change nothing."""
    early = [breaker.begin() for _ in range(20)]
    for call in early[:6]:
        breaker.failed(call)
    assert breaker.state is OPEN
    breaker.succeeded(early[6])
    assert breaker.state is OPEN

    clock.now_s += 15.0
    probes = [breaker.begin() for _ in range(3)]
    breaker.failed(early[7])
    breaker.abandoned(early[8])
    assert (breaker.state, breaker.admits) == (HALF_OPEN, 0)

    for probe in probes:
        breaker.succeeded(probe)
    for call in early[9:]:
        breaker.failed(call)
    assert breaker.state is CLOSED


def test_a_late_probe_does_not_count_in_the_next_half_open_state(breaker: CircuitBreaker, clock: Clock) -> None:
    """It is of an older generation, though of the same state."""
    opened(breaker, clock)
    late, failing = breaker.begin(), breaker.begin()
    breaker.failed(failing)
    clock.now_s += 15.0
    fresh = [breaker.begin() for _ in range(3)]
    breaker.failed(late)
    assert breaker.state is HALF_OPEN
    for call in fresh:
        breaker.succeeded(call)
    assert breaker.state is CLOSED


def test_every_change_is_told_with_why(breaker: CircuitBreaker, clock: Clock, changes: list[Change]) -> None:
    """Once each, in the order in which they happened."""
    opened(breaker, clock)
    for _ in range(3):
        breaker.succeeded(breaker.begin())

    assert [(change.before, change.after, change.why) for change in changes] == [
        (CLOSED, OPEN, "6 calls in a row failed"),
        (OPEN, HALF_OPEN, "it was open for 15 s"),
        (HALF_OPEN, CLOSED, "3 probes in a row succeeded"),
    ]
    assert {change.name for change in changes} == {"PaymentService"}


@pytest.mark.parametrize("wrong", [{"failures_max": -1}, {"probes_max": 0}, {"open_s": 0.0}, {"open_s": float("nan")}])
def test_a_breaker_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match="a breaker needs"):
        CircuitBreaker(**wrong)  # type: ignore[arg-type]
