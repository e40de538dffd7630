"""The open loop: one schedule for all users, so that a slow server cannot slow down the asking.

Slot `i` is due at `start + i/rate`, whatever became of earlier ones. A free user takes the next slot, waits until it is
due, and begins it; a user that comes too late begins it late, and its latency still counts from when it was due. A
slot that nobody had taken when the end came is *missed*: counted, never dropped silently.

Does not: know of Locust, gevent, HTTP or clocks. Times come in as nanoseconds, so a test can play a whole run in
simulated time.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

RATE_MAX_PER_S = 1_000_000.0
END_SLACK_NS = 2_000_000_000
"""A stop that comes this close before the planned end is that end: Locust's own timer runs a moment ahead of ours."""

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One intended beginning. number: from 0, without gaps. is_overdue: it came due before any user was free for it."""

    number: int
    due_ns: int
    is_overdue: bool


class OpenLoop:
    """Hands out slots and keeps count of what became of them; lives on one thread."""

    def __init__(self, *, rate_per_s: float, start_ns: int, duration_s: float | None = None) -> None:
        """Begin at `start_ns`. duration_s: None when somebody will say `close` some day."""
        if not (math.isfinite(rate_per_s) and 0 < rate_per_s <= RATE_MAX_PER_S):
            raise ValueError(f"rate_per_s={rate_per_s} is outside 0..{RATE_MAX_PER_S:g}")
        if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
            raise ValueError(f"duration_s={duration_s} is not above 0")
        self.start_ns = start_ns
        self.begun = 0
        self.overdue = 0
        self.lag_max_ns = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self._rate_per_s = rate_per_s
        self._end_ns = None if duration_s is None else start_ns + round(duration_s * _NS_PER_S)
        self._next = 0
        self._returned: list[int] = []
        self._held: set[int] = set()

    @property
    def end_ns(self) -> int | None:
        """When the last slot must have been due, None while nobody knows."""
        return self._end_ns

    @property
    def slots(self) -> int:
        """How many slots come due before the end; of a loop without an end, how many were taken so far."""
        if self._end_ns is None:
            return self._next
        count = math.ceil((self._end_ns - self.start_ns) / _NS_PER_S * self._rate_per_s) + 1
        while count > 0 and self.due_ns(count - 1) >= self._end_ns:
            count -= 1
        return count

    @property
    def missed(self) -> int:
        """How many slots came due and were never begun; final once the loop `is_over`."""
        return max(0, self.slots - self.begun - len(self._held_in_time()))

    @property
    def slots_taken(self) -> int:
        """One more than the highest number handed out."""
        return self._next

    def due_ns(self, number: int) -> int:
        """When a slot is due."""
        return self.start_ns + round(number / self._rate_per_s * _NS_PER_S)

    def take(self, now_ns: int) -> Slot | None:
        """Hand the next slot to a free user; None when there is none left before the end."""
        if self._end_ns is not None and now_ns >= self._end_ns:
            return None
        number = self._returned[0] if self._returned else self._next
        due_ns = self.due_ns(number)
        if self._end_ns is not None and due_ns >= self._end_ns:
            return None
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._next += 1
        self._held.add(number)
        # Had any user been free when it came due, that user would have held it already.
        is_overdue = now_ns > due_ns
        self.overdue += is_overdue
        return Slot(number=number, due_ns=due_ns, is_overdue=is_overdue)

    def begin(self, slot: Slot, now_ns: int) -> bool:
        """Count a slot as begun; False when it is due after an end that was set meanwhile, and must not begin."""
        self._held.discard(slot.number)
        if self._end_ns is not None and slot.due_ns >= self._end_ns:
            return False
        if not slot.is_overdue:
            # A free user was waiting for this moment: what it is late is our own lag, not the system's.
            self.lag_max_ns = max(self.lag_max_ns, now_ns - slot.due_ns)
        self.begun += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        return True

    def end(self) -> None:
        """Count one begun slot as ended, however it ended."""
        self.in_flight -= 1

    def give_back(self, slot: Slot) -> None:
        """Return a slot that was taken and not begun, because its user was taken away; another one gets it."""
        self._held.discard(slot.number)
        heapq.heappush(self._returned, slot.number)

    def close(self, now_ns: int) -> None:
        """End the loop now, or at its planned end if that is at hand. Slots that are held and due still begin."""
        if self._end_ns is None or self._end_ns - now_ns > END_SLACK_NS:
            self._end_ns = now_ns

    def is_over(self, now_ns: int) -> bool:
        """Whether the end has come, nothing is in flight, and no user holds a slot that was due before the end."""
        if self._end_ns is None or now_ns < self._end_ns:
            return False
        return not self.in_flight and not self._held_in_time()

    def _held_in_time(self) -> list[int]:
        if self._end_ns is None:
            return list(self._held)
        return [number for number in self._held if self.due_ns(number) < self._end_ns]
