"""The timeline of a run in numbers: what was asked, what settled, how long it took, and where the storm blew.

`read_timeline` asks the evidence and gets at most `BUCKETS_MAX` buckets back, however many operations there were.
It knows nothing of how they look: `harness.report.picture` draws them.

Times are seconds since the first operation began. An operation is in flight from its beginning until its key settled;
one that certainly failed, or that left nothing behind, until it was known to be over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import FaultWindow, Outcome, ProcessEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.evidence.store import Evidence

BUCKETS_MAX = 120
DOTS_MAX = 1_000
"""Up to so many answered operations are drawn one by one, more as percentiles of their bucket."""

MARKS_MAX = 40
"""At most so many fault windows, and as many process events, stand in the picture; the tables know them all."""

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_BUCKET_NS_MIN = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What happened in one slice of the run.

    p50_ms, p99_ms: of the accepted operations that began in it. in_flight: when the slice ended.
    """

    began_s: float
    ok: int = 0
    failed: int = 0
    unknown: int = 0
    settled: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One answered operation."""

    began_s: float
    latency_ms: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One fault window. healed_s: None when it never healed."""

    label: str
    began_s: float
    healed_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened to a process while operations were under way."""

    label: str
    at_s: float
    is_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The run in numbers.

    origin_ns: when the first operation began. dots: empty when there are more than `DOTS_MAX`.
    unanswered: operations without an end. states: keys whose final state was read.
    settled_outside: keys that claim to have settled outside the time shown, by a clock that was wrong.
    bands_left_out, marks_left_out: how many more there were than the picture holds.
    """

    origin_ns: int
    bucket_s: float
    buckets: tuple[Bucket, ...]
    dots: tuple[Dot, ...]
    bands: tuple[Band, ...]
    bands_left_out: int
    marks: tuple[Mark, ...]
    marks_left_out: int
    unanswered: int
    states: int
    settled_outside: int

    @property
    def began_s(self) -> float:
        """Left edge."""
        return self.buckets[0].began_s

    @property
    def ended_s(self) -> float:
        """Right edge."""
        return self.buckets[-1].began_s + self.bucket_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slices:
    """How the time shown is cut into buckets."""

    origin_ns: int
    first_ns: int
    width_ns: int
    count: int

    @property
    def last_ns(self) -> int:
        return self.first_ns + self.width_ns * self.count


def read_timeline(evidence: Evidence) -> Timeline | None:
    """Return the timeline; None when nothing was placed."""
    faults = sorted(evidence.select(FaultWindow), key=lambda window: (window.began_ns, window.number))
    slices = _slices(evidence, faults)
    if slices is None:
        return None
    marks = _marks(evidence, slices)
    answered = evidence.count("SELECT count(*) FROM operations WHERE ended_ns IS NOT NULL")
    return Timeline(
        origin_ns=slices.origin_ns,
        bucket_s=slices.width_ns / _NS_PER_S,
        buckets=_buckets(evidence, slices),
        dots=_dots(evidence, slices) if answered <= DOTS_MAX else (),
        bands=tuple(
            Band(
                label=f"{window.name} {window.target}",
                began_s=(window.began_ns - slices.origin_ns) / _NS_PER_S,
                healed_s=None if window.healed_ns is None else (window.healed_ns - slices.origin_ns) / _NS_PER_S,
            )
            for window in faults[:MARKS_MAX]
        ),
        bands_left_out=max(0, len(faults) - MARKS_MAX),
        marks=marks[:MARKS_MAX],
        marks_left_out=max(0, len(marks) - MARKS_MAX),
        unanswered=evidence.count("SELECT count(*) FROM operations WHERE ended_ns IS NULL"),
        states=evidence.count("SELECT count(*) FROM states"),
        settled_outside=evidence.count(
            "SELECT count(*) FROM states WHERE settled_ns < $1 OR settled_ns >= $2", [slices.first_ns, slices.last_ns]
        ),
    )


def _slices(evidence: Evidence, faults: Sequence[FaultWindow]) -> _Slices | None:
    ((origin_ns, asked_until_ns),) = evidence.query(
        "SELECT min(began_ns), max(greatest(began_ns, coalesce(ended_ns, began_ns))) FROM operations"
    )
    if origin_ns is None:
        return None
    # A skewed service clock may claim any settled_ns; the read, by our own clock, bounds it.
    settled_until_ns = evidence.count("SELECT max(least(settled_ns, read_ns)) FROM states WHERE settled_ns IS NOT NULL")
    from_ns = min([origin_ns, *(window.began_ns for window in faults)])
    until_ns = max([asked_until_ns, settled_until_ns, *(window.healed_ns or window.began_ns for window in faults)])
    width_ns = _BUCKET_NS_MIN
    while True:
        first_ns = origin_ns - math.ceil((origin_ns - from_ns) / width_ns) * width_ns
        count = (until_ns - first_ns) // width_ns + 1
        if count <= BUCKETS_MAX:
            return _Slices(origin_ns=origin_ns, first_ns=first_ns, width_ns=width_ns, count=count)
        width_ns = _rounder(width_ns)


def _rounder(width_ns: int) -> int:
    """Return the next width of 1, 2, 5, 10, 20, 50..."""
    leading = width_ns // 10 ** (len(str(width_ns)) - 1)
    return width_ns * 5 // 2 if leading == 2 else width_ns * 2  # noqa: PLR2004 - of 1, 2, 5 only 2 is not doubled


def _buckets(evidence: Evidence, slices: _Slices) -> tuple[Bucket, ...]:
    cut = [slices.first_ns, slices.width_ns]
    begun: dict[tuple[int, str], int] = {
        (bucket, outcome): count
        for bucket, outcome, count in evidence.query(
            "SELECT (began_ns - $1) // $2 AS bucket, outcome, count(*) FROM operations GROUP BY bucket, outcome", cut
        )
    }
    settled: dict[int, int] = dict(
        evidence.query(
            "SELECT (settled_ns - $1) // $2 AS bucket, count(*) FROM states WHERE settled_ns >= $1 GROUP BY bucket", cut
        )
    )
    latencies: dict[int, tuple[float, float]] = {
        bucket: (p50_ns / _NS_PER_MS, p99_ns / _NS_PER_MS)
        for bucket, (p50_ns, p99_ns) in evidence.query(
            """
            SELECT (began_ns - $1) // $2 AS bucket, quantile_disc(ended_ns - intended_ns, [0.5, 0.99])
            FROM operations WHERE outcome = 'ok' AND ended_ns IS NOT NULL GROUP BY bucket
            """,
            cut,
        )
    }
    # Both ends are cut to the time shown, so that a wrong clock cannot take an operation out before it came in.
    changes: dict[int, int] = dict(
        evidence.query(
            """
            WITH flights AS (
                SELECT o.began_ns, CASE
                    WHEN s.settled_ns IS NOT NULL THEN s.settled_ns
                    WHEN o.outcome = 'failed' THEN o.ended_ns
                    WHEN o.outcome = 'unknown' AND s.state = 'absent' THEN coalesce(o.ended_ns, s.read_ns)
                END AS over_ns
                FROM operations o LEFT JOIN states s USING (key)
            ), changes AS (
                SELECT began_ns AS at_ns, 1 AS change FROM flights
                UNION ALL
                SELECT greatest(over_ns, began_ns), -1 FROM flights WHERE over_ns IS NOT NULL
            )
            SELECT (at_ns - $1) // $2 AS bucket, sum(change)::BIGINT FROM changes GROUP BY bucket
            """,
            cut,
        )
    )
    buckets = []
    in_flight = 0
    for number in range(slices.count):
        in_flight += changes.get(number, 0)
        p50_ms, p99_ms = latencies.get(number, (None, None))
        buckets.append(
            Bucket(
                began_s=(slices.first_ns - slices.origin_ns + number * slices.width_ns) / _NS_PER_S,
                ok=begun.get((number, Outcome.OK), 0),
                failed=begun.get((number, Outcome.FAILED), 0),
                unknown=begun.get((number, Outcome.UNKNOWN), 0),
                settled=settled.get(number, 0),
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                in_flight=in_flight,
            )
        )
    return tuple(buckets)


def _dots(evidence: Evidence, slices: _Slices) -> tuple[Dot, ...]:
    rows = evidence.query(
        """
        SELECT began_ns, ended_ns - intended_ns, outcome FROM operations
        WHERE ended_ns IS NOT NULL ORDER BY began_ns, number
        """
    )
    return tuple(
        Dot(
            began_s=(began_ns - slices.origin_ns) / _NS_PER_S,
            latency_ms=latency_ns / _NS_PER_MS,
            outcome=Outcome(outcome),
        )
        for began_ns, latency_ns, outcome in rows
    )


def _marks(evidence: Evidence, slices: _Slices) -> tuple[Mark, ...]:
    events = evidence.select(
        ProcessEvent,
        """
        at_ns >= $1 AND at_ns < $2
        AND (event IN ('killed', 'ready') OR (event = 'exited' AND detail LIKE 'unexpected%')) ORDER BY at_ns, pid
        """,
        [slices.first_ns, slices.last_ns],
    )
    return tuple(
        Mark(
            label=f"{event.process} {'died' if event.event == 'exited' else event.event}",
            at_s=(event.at_ns - slices.origin_ns) / _NS_PER_S,
            is_end=event.event != "ready",
        )
        for event in events
    )
