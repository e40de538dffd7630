"""The open loop, played in simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest

from loadtests.open_loop import OpenLoop, Slot

MS = 1_000_000
S = 1000 * MS
START_NS = 1_795_000_000 * S


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """One slot that was begun and answered."""

    number: int
    latency_ns: int


def play(loop: OpenLoop, *, users: int, answered_at: Callable[[int], int], stop_ns: int | None = None) -> list[Lived]:
    """Let users go through the loop in simulated time. answered_at: when a request sent at this time is answered."""
    lived: list[Lived] = []
    waiting: list[tuple[int, int, Generator[int, int, None]]] = []
    for number in range(users):
        customer = _customer(loop, answered_at, lived)
        _wait(waiting, customer, number, next(customer))
    while waiting:
        if stop_ns is not None and waiting[0][0] >= stop_ns:
            loop.close(stop_ns)
            stop_ns = None
        now_ns, number, customer = heapq.heappop(waiting)
        try:
            _wait(waiting, customer, number, customer.send(now_ns))
        except StopIteration:
            continue
    return lived


def _wait(
    waiting: list[tuple[int, int, Generator[int, int, None]]],
    customer: Generator[int, int, None],
    number: int,
    until_ns: int,
) -> None:
    heapq.heappush(waiting, (until_ns, number, customer))


def _customer(loop: OpenLoop, answered_at: Callable[[int], int], lived: list[Lived]) -> Generator[int, int, None]:
    now_ns = yield START_NS
    while (slot := loop.take(now_ns)) is not None:
        if slot.due_ns > now_ns:
            now_ns = yield slot.due_ns
        if loop.begin(slot, now_ns):
            now_ns = yield answered_at(now_ns)
            loop.end()
            lived.append(Lived(number=slot.number, latency_ns=now_ns - slot.due_ns))


def promptly(now_ns: int) -> int:
    """A server that answers after a millisecond."""
    return now_ns + MS


def stalling(*, from_ns: int, for_ns: int) -> Callable[[int], int]:
    """A server that answers after a millisecond, except that it stands still once."""

    def answered_at(now_ns: int) -> int:
        return from_ns + for_ns + MS if from_ns <= now_ns < from_ns + for_ns else promptly(now_ns)

    return answered_at


def test_a_prompt_server_sees_every_slot_when_it_is_due() -> None:
    """Nothing is late, nothing is missed, and the count is the rate times the time."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)

    lived = play(loop, users=5, answered_at=promptly)

    assert [each.number for each in lived] == list(range(300))
    assert {each.latency_ns for each in lived} == {MS}
    assert (loop.slots, loop.begun, loop.missed, loop.overdue, loop.lag_max_ns) == (300, 300, 0, 0, 0)


def test_a_stall_shows_as_latency_and_not_as_missing_requests() -> None:
    """With room for all of them, orders go on being asked during the stall, and each waits for its end."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)

    lived = play(loop, users=200, answered_at=stalling(from_ns=START_NS + S, for_ns=S))

    slow = [each.latency_ns for each in lived if each.latency_ns > MS]
    assert len(lived) == 300
    assert len(slow) == 100
    assert max(slow) == S + MS
    assert min(slow) == 10 * MS + MS
    assert loop.in_flight_max == 101
    assert (loop.missed, loop.overdue) == (0, 0)


def test_a_stall_without_room_shows_the_same_latencies_from_the_intended_start() -> None:
    """All users are busy, so orders are sent late; that may not make the stall look shorter."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)

    lived = play(loop, users=10, answered_at=stalling(from_ns=START_NS + S, for_ns=S))

    slow = sorted((each.latency_ns for each in lived if each.latency_ns > 10 * MS), reverse=True)
    assert len(lived) == 300
    assert slow[0] == S + MS
    assert len(slow) >= 95
    assert loop.missed == 0
    assert loop.in_flight_max == 10
    assert 90 <= loop.overdue <= 110
    assert loop.lag_max_ns == 0


def test_slots_that_nobody_got_to_before_the_end_are_missed() -> None:
    """The server stands still until the end: ten orders are in flight, the other slots were due and never begun."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)

    lived = play(loop, users=10, answered_at=stalling(from_ns=START_NS + S, for_ns=5 * S))

    assert len(lived) == 110
    assert (loop.slots, loop.begun, loop.missed) == (300, 110, 190)
    assert loop.is_over(START_NS + 3 * S)


def test_a_stop_ends_the_loop_early_and_asks_for_no_more_than_was_due() -> None:
    """Slots after the stop were never due, so they are not missed either."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS)

    lived = play(loop, users=5, answered_at=promptly, stop_ns=START_NS + S + 5 * MS)

    assert len(lived) == 101
    assert (loop.slots, loop.missed) == (101, 0)


def test_a_stop_just_before_the_planned_end_is_the_planned_end() -> None:
    """Locust's own timer runs a little ahead of the schedule; the last slots still count."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)

    lived = play(loop, users=5, answered_at=promptly, stop_ns=START_NS + 3 * S - 25 * MS)

    assert len(lived) == 300


def test_a_free_user_that_begins_late_is_our_own_lag() -> None:
    """It held the slot in time; only nobody ran it. A slot that waited for a user says nothing about us."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)
    held, overdue = loop.take(START_NS), loop.take(START_NS + 500 * MS)
    assert held is not None
    assert overdue is not None

    loop.begin(held, START_NS + 40 * MS)
    loop.begin(overdue, START_NS + 500 * MS)

    assert (loop.overdue, loop.lag_max_ns) == (1, 40 * MS)


def test_a_slot_that_was_given_back_goes_to_the_next_user() -> None:
    """A user that is taken away does not take its slot along."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS, duration_s=3)
    taken = [loop.take(START_NS) for _ in range(3)]
    assert taken[1] is not None

    loop.give_back(taken[1])

    assert loop.take(START_NS) == taken[1]
    assert loop.take(START_NS) == Slot(number=3, due_ns=START_NS + 30 * MS, is_overdue=False)


def test_a_slot_held_at_the_end_is_waited_for_when_it_was_due_and_dropped_when_not() -> None:
    """A free user that wakes a moment after the end still begins the slot it held, and no later one."""
    loop = OpenLoop(rate_per_s=100, start_ns=START_NS)
    due, later = loop.take(START_NS), loop.take(START_NS)
    assert due is not None
    assert later is not None

    loop.close(START_NS + 5 * MS)

    assert not loop.is_over(START_NS + 6 * MS)
    assert loop.begin(due, START_NS + 6 * MS)
    assert not loop.begin(later, START_NS + 10 * MS)
    loop.end()
    assert loop.is_over(START_NS + 6 * MS)
    assert (loop.slots, loop.begun, loop.missed) == (1, 1, 0)


@pytest.mark.parametrize("rate_per_s", [0, -1, float("nan"), float("inf"), 2_000_000])
def test_a_rate_that_makes_no_sense_is_refused(rate_per_s: float) -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match=f"rate_per_s={rate_per_s}"):
        OpenLoop(rate_per_s=rate_per_s, start_ns=START_NS)


@pytest.mark.parametrize(("rate_per_s", "duration_s"), [(3, 1), (7.5, 2.4), (9999, 3.7), (0.5, 1)])
def test_slots_are_those_due_before_the_end(rate_per_s: float, duration_s: float) -> None:
    """Also where rate and duration do not come out even."""
    loop = OpenLoop(rate_per_s=rate_per_s, start_ns=START_NS, duration_s=duration_s)
    assert loop.end_ns is not None

    assert loop.due_ns(loop.slots - 1) < loop.end_ns <= loop.due_ns(loop.slots)
