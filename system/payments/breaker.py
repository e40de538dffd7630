"""A circuit breaker: leaves in peace whoever fails again and again, and finds out carefully when that is over.

    call = breaker.begin()              # BreakerOpenError: do not call
    ...                                 # the call
    breaker.succeeded(call)             # or failed(call), or abandoned(call): exactly one of them, whatever happens

Promises:

-   CLOSED admits every call and opens on *more* than `failures_max` failures in a row; any success starts the count
    anew.
-   OPEN admits none for `open_s`, by a clock that nobody sets. Then it is HALF_OPEN, which needs no timer: it is so as
    soon as somebody asks.
-   HALF_OPEN admits `probes_max` calls and no more. It closes when all of them succeeded, not at the first: one answer
    may be luck, and what waits behind the breaker comes as a crowd. One that fails opens it for `open_s` again.
-   The result of a call counts only in the state it began in. What a call finds out that began before the breaker
    opened, closed or opened again says nothing about now, and is ignored.
-   A call that was abandoned (cancelled) has no result: it neither counts as a failure, nor as a success that would
    start the count anew; a probe's place is free again.

Does not: call anything, wait, or keep tasks or timers. It belongs to one thread, the event loop's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

FAILURES_MAX = 5
OPEN_S = 15.0
PROBES_MAX = 3
BUSY_RETRY_S = 0.5
"""When to come again to a half-open breaker whose places are taken: a probe is answered by then, or decides nothing."""


class BreakerState(IntEnum):
    """What a breaker does with calls; the numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpenError(Exception):
    """The call must not be made. retry_in_s: when it is worth asking again."""

    def __init__(self, message: str, *, retry_in_s: float) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A breaker went from one state to another; why, in words."""

    name: str
    before: BreakerState
    after: BreakerState
    why: str


Call = int
"""A call under way, as the breaker knows it: the generation that it began in."""


class CircuitBreaker:
    """One breaker, for one thing that may fail.

    on_change: called after each change of state, in the call that caused it; must not raise.
    """

    def __init__(
        self,
        name: str = "PaymentService",
        *,
        failures_max: int = FAILURES_MAX,
        open_s: float = OPEN_S,
        probes_max: int = PROBES_MAX,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        if failures_max < 0 or probes_max < 1 or not open_s > 0:
            raise ValueError(
                f"failures_max={failures_max}, probes_max={probes_max}, open_s={open_s}: a breaker needs at least 0, "
                "at least 1, and more than 0"
            )
        self.name = name
        self._failures_max = failures_max
        self._open_s = open_s
        self._probes_max = probes_max
        self._clock = clock
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        # Grows with every change of state: what tells a result of now from one of an earlier time.
        self._generation: Call = 0
        self._failures = 0
        self._half_open_at_s = 0.0
        self._probing = 0
        self._probes_succeeded = 0

    @property
    def state(self) -> BreakerState:
        """The state now."""
        if self._state is BreakerState.OPEN and self._clock() >= self._half_open_at_s:
            self._change(BreakerState.HALF_OPEN, f"it was open for {self._open_s:g} s")
        return self._state

    @property
    def admits(self) -> int | None:
        """How many calls may begin now; None for any number."""
        state = self.state
        if state is BreakerState.CLOSED:
            return None
        if state is BreakerState.OPEN:
            return 0
        return self._probes_max - self._probing - self._probes_succeeded

    @property
    def retry_in_s(self) -> float:
        """When it is worth asking again, if no call is admitted now."""
        if self.state is BreakerState.OPEN:
            return max(0.0, self._half_open_at_s - self._clock())
        return BUSY_RETRY_S

    def begin(self) -> Call:
        """Admit a call, or raise `BreakerOpenError`; whoever is admitted reports its result."""
        if self._state is BreakerState.CLOSED:
            return self._generation
        if not self.admits:
            doing = "open" if self._state is BreakerState.OPEN else f"half-open, {self._probing} probes are under way"
            raise BreakerOpenError(f"the circuit breaker {self.name} is {doing}", retry_in_s=self.retry_in_s)
        self._probing += 1
        return self._generation

    def succeeded(self, call: Call) -> None:
        """The call was answered."""
        if call != self._generation:
            return
        if self._state is BreakerState.CLOSED:
            self._failures = 0
            return
        self._probing -= 1
        self._probes_succeeded += 1
        if self._probes_succeeded == self._probes_max:
            self._change(BreakerState.CLOSED, f"{self._probes_max} probes in a row succeeded")

    def failed(self, call: Call) -> None:
        """The call failed in a way that says something about whoever was called."""
        if call != self._generation:
            return
        if self._state is BreakerState.CLOSED:
            self._failures += 1
            if self._failures > self._failures_max:
                self._change(BreakerState.OPEN, f"{self._failures} calls in a row failed")
        else:
            self._change(BreakerState.OPEN, "a probe failed")

    def abandoned(self, call: Call) -> None:
        """Nobody waits for the call any more: it has no result."""
        if call == self._generation and self._state is BreakerState.HALF_OPEN:
            self._probing -= 1

    def _change(self, after: BreakerState, why: str) -> None:
        before, self._state = self._state, after
        self._generation += 1
        self._failures = self._probing = self._probes_succeeded = 0
        if after is BreakerState.OPEN:
            self._half_open_at_s = self._clock() + self._open_s
        if self._on_change is not None:
            self._on_change(Change(name=self.name, before=before, after=after, why=why))
