"""How far a broker's clock is ahead of ours. What it stored, it tells by its own; everything else is told by ours.

A broker of the run has the clock of this machine. Somebody's own may run elsewhere, and half a minute between the two
would make an order late that was in time, or the other way round.

Promises: no more is said than was measured. Where one clock can be behind all answers there is no difference, so the
times of a broker on this machine stay as they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

QUESTIONS = 5
"""Each answer bounds the difference by how long it took; the quickest bounds it best."""
MOVED_MAX_NS = 100_000_000
"""More than two honest clocks drift apart during a run; far less than any invariant's deadline."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROUNDED_NS = 1_000
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockDifference:
    """The broker's clock is ahead of ours by at least `low_ns` and at most `high_ns`; negative when it is behind."""

    low_ns: int
    high_ns: int

    @property
    def ahead_ns(self) -> int:
        """The likeliest value: 0 where that is possible."""
        return 0 if self.low_ns <= 0 <= self.high_ns else (self.low_ns + self.high_ns) // 2

    def moved_ns(self, later: ClockDifference) -> int:
        """By how much it certainly changed until a later reading; negative when it fell behind."""
        return max(later.low_ns - self.high_ns, 0) + min(later.high_ns - self.low_ns, 0)

    def sentence(self) -> str:
        """Say it; empty when there is nothing to say."""
        if not self.ahead_ns:
            return ""
        direction = "ahead of" if self.ahead_ns > 0 else "behind"
        return f"the broker's clock is {abs(self.ahead_ns) / _NS:.3f} s {direction} ours; its times are told by ours"


NOT_TOLD = ClockDifference(low_ns=0, high_ns=0)
"""What is known of a broker that does not say what time it has (nats-server before 2.10)."""


class BrokerClock:
    """Compares the clocks of those who lead a broker's streams with ours."""

    def __init__(self, ask: Callable[[str], Awaitable[bytes]], *, now_ns: Callable[[], int]) -> None:
        """ask: sends an empty request to a subject and returns the answer. now_ns: our clock."""
        self._ask = ask
        self._now_ns = now_ns
        self._before: tuple[str, ClockDifference] | None = None

    async def note(self, stream: str) -> None:
        """Remember how the clocks differ now, for `why_unsure`."""
        self._before = stream, await self.difference(stream)

    async def difference(self, stream: str) -> ClockDifference:
        """Compare the clock of whoever leads this stream, or return `NOT_TOLD`. Raises what asking raises."""
        found = NOT_TOLD
        for _ in range(QUESTIONS):
            asked_ns = self._now_ns()
            told_ns = _time_in(await self._ask(f"$JS.API.STREAM.INFO.{stream}"))
            if told_ns is None:
                return NOT_TOLD
            found = _narrowed(found, low_ns=told_ns - self._now_ns(), high_ns=told_ns + _ROUNDED_NS - asked_ns)
        return found

    async def why_unsure(self) -> str:
        """Say why no time of the broker can be told by our clock; empty when nothing is known against it."""
        if self._before is None:
            return ""
        stream, before = self._before
        now = await self.difference(stream)
        if before is NOT_TOLD or now is NOT_TOLD:
            return (
                "the broker does not tell its time (nats-server before 2.10), so its times cannot be compared with ours"
            )
        moved_ns = before.moved_ns(now)
        if abs(moved_ns) <= MOVED_MAX_NS:
            return ""
        return f"the broker's clock and ours moved against each other during the run, by {moved_ns / _NS:.3f} s"


def _narrowed(known: ClockDifference, *, low_ns: int, high_ns: int) -> ClockDifference:
    if known is not NOT_TOLD and max(known.low_ns, low_ns) <= min(known.high_ns, high_ns):
        return ClockDifference(low_ns=max(known.low_ns, low_ns), high_ns=min(known.high_ns, high_ns))
    return ClockDifference(low_ns=low_ns, high_ns=high_ns)  # the first, or a clock was set meanwhile


def _time_in(answer: bytes) -> int | None:
    """When the broker answered, by its own clock, cut to whole microseconds."""
    told = json.loads(answer).get("ts")
    if told is None:
        return None
    return (datetime.fromisoformat(told) - _EPOCH) // timedelta(microseconds=1) * _ROUNDED_NS
