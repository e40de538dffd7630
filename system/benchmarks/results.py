"""What one measurement says, worked out from what was recorded; nothing here starts or waits for anything.

Promises: a latency counts from when the order was due; a percentile is the exact nearest rank over all orders that were
due in the steady window, and orders without an end are counted beside it and never left out silently; a rate is *held*
only if nothing was refused, missed, unanswered or left unsettled, accepting was fast enough, and settling kept up.
"""

from __future__ import annotations

import array
import dataclasses
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from system.benchmarks.generator import Record, due_ns
from system.benchmarks.probes import Disk, MachineCpu

ACCEPTED_P99_MAX_MS = 20.0

BACKLOG_SAMPLES = 60
BACKLOG_GROWTH_SHARE_MAX = 0.02
BACKLOG_GROWTH_MAX_S = 0.05
"""Between the first and the last third of the window the median backlog may grow by this share of the orders in between
or, if that is more, by the orders of this time: less is noise. A stall shorter than half a third does not show."""

ACCEPTED = 202

_NS = 1_000_000_000
_NS_PER_MS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for. The steady window of `seconds` follows `warm_up_s` at the same rate.

    is_apart: orders has a core to itself where there are two.
    """

    rate_per_s: int
    seconds: float
    warm_up_s: float
    connections: int
    is_apart: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was recorded. settled_ns: by order number, 0 where it did not.

    since_ns, until_ns: the steady window as it was measured. cpu_s, machine: of each process and of the
    whole machine within it. charges: lines of the ledger where money moved. spans, spans_lost: None when a
    process did not end gracefully, so that nobody can tell.
    """

    record: Record
    settled_ns: array.array[int]
    began_ns: int
    since_ns: int
    until_ns: int
    cpu_s: Mapping[str, float]
    machine: MachineCpu
    disk: Disk
    charges: int
    spans: int | None
    spans_lost: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One rate and what became of it.

    begun to charges, and refused: of the whole run, warm-up included; refused by status. orders_per_s: accepted in the
    steady window. late_p99_ms: how late orders were sent. Percentiles: of the orders due in the window.
    settled_quiet_p99_ms: of those that met no disk stall. cpu_us_per_order: of the window, per order accepted in it.
    cores_elsewhere: cores that did anything else, the kernel's own threads included; with much of it the other figures
    say little. why_not: why the rate was not held; empty when it was.
    """

    rate_asked_per_s: int
    seconds: float
    connections: int
    orders: int
    begun: int
    accepted: int
    refused: Mapping[str, int]
    missed: int
    unanswered: int
    unsettled: int
    charges: int
    orders_per_s: float
    late_p99_ms: float
    accepted_p50_ms: float
    accepted_p99_ms: float
    accepted_max_ms: float
    settled_p50_ms: float
    settled_p99_ms: float
    settled_max_ms: float
    settled_quiet_p99_ms: float
    backlog_growth: int
    cpu_us_per_order: Mapping[str, float]
    cpu_us_per_order_all: float
    cores_busy: float
    cores_elsewhere: float
    cores_stolen: float
    tracing: bool
    spans_per_order: float | None
    spans_lost: int | None
    fsync_p50_ms: float
    fsync_longest_ms: float
    fsync_stalls: int
    why_not: tuple[str, ...]

    @property
    def is_held(self) -> bool:
        """Whether the shop can go on like this."""
        return not self.why_not


def measurement_of(plan: Plan, seen: Observed) -> Measurement:
    """Work everything out."""
    record, total = seen.record, len(seen.record.status)
    due = [due_ns(number, began_ns=seen.began_ns, rate_per_s=plan.rate_per_s) for number in range(total)]
    first = int(plan.rate_per_s * plan.warm_up_s)
    steady = range(first, total)
    accepted = [number for number in range(total) if record.status[number] == ACCEPTED]
    window_s = (seen.until_ns - seen.since_ns) / _NS
    accepted_in_window = sum(seen.since_ns <= record.answered_ns[number] < seen.until_ns for number in accepted)
    per_order = 1e6 / max(1, accepted_in_window)
    ours_s = sum(seen.cpu_s.values())

    accepting = _sorted_ms(
        record.answered_ns[number] - due[number] for number in steady if record.status[number] == ACCEPTED
    )
    ends = {number: seen.settled_ns[number] for number in accepted if seen.settled_ns[number]}
    settling = _sorted_ms(ends[number] - due[number] for number in steady if number in ends)
    quiet = _sorted_ms(
        ends[number] - due[number]
        for number in steady
        if number in ends and not _meets(seen.disk.stalls_ns, due[number], ends[number])
    )
    begun = sum(1 for sent_ns in record.sent_ns if sent_ns)
    answered = Counter(status for status in record.status if status)
    measurement = Measurement(
        rate_asked_per_s=plan.rate_per_s,
        seconds=plan.seconds,
        connections=plan.connections,
        orders=total,
        begun=begun,
        accepted=len(accepted),
        refused={str(status): count for status, count in sorted(answered.items()) if status != ACCEPTED},
        missed=total - begun,
        unanswered=begun - answered.total(),
        unsettled=len(accepted) - len(ends),
        charges=seen.charges,
        orders_per_s=accepted_in_window / window_s,
        late_p99_ms=percentile(_sorted_ms(record.sent_ns[n] - due[n] for n in steady if record.sent_ns[n]), 0.99),
        accepted_p50_ms=percentile(accepting, 0.5),
        accepted_p99_ms=percentile(accepting, 0.99),
        accepted_max_ms=percentile(accepting, 1.0),
        settled_p50_ms=percentile(settling, 0.5),
        settled_p99_ms=percentile(settling, 0.99),
        settled_max_ms=percentile(settling, 1.0),
        settled_quiet_p99_ms=percentile(quiet, 0.99),
        backlog_growth=backlog_growth(
            sorted(record.answered_ns[number] for number in accepted),
            sorted(ends.values()),
            seen.since_ns,
            seen.until_ns,
        ),
        cpu_us_per_order={name: cpu_s * per_order for name, cpu_s in seen.cpu_s.items()},
        cpu_us_per_order_all=ours_s * per_order,
        cores_busy=seen.machine.busy_s / window_s,
        cores_elsewhere=max(0.0, seen.machine.busy_s - ours_s) / window_s,
        cores_stolen=seen.machine.stolen_s / window_s,
        tracing=True,
        spans_per_order=None if seen.spans is None else seen.spans / max(1, len(accepted)),
        spans_lost=seen.spans_lost,
        fsync_p50_ms=seen.disk.p50_ms,
        fsync_longest_ms=seen.disk.longest_ms,
        fsync_stalls=len(seen.disk.stalls_ns),
        why_not=(),
    )
    return dataclasses.replace(measurement, why_not=tuple(_why_not(measurement)))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that at least this share of all do not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def backlog_growth(accepted_ns: Sequence[int], settled_ns: Sequence[int], since_ns: int, until_ns: int) -> int:
    """By how much the orders accepted and not settled yet grew from the first to the last third of the window."""
    step_ns = (until_ns - since_ns) / BACKLOG_SAMPLES
    instants = [since_ns + int((sample + 0.5) * step_ns) for sample in range(BACKLOG_SAMPLES)]
    backlog = [bisect_right(accepted_ns, at_ns) - bisect_right(settled_ns, at_ns) for at_ns in instants]
    third = BACKLOG_SAMPLES // 3
    return int(statistics.median(backlog[-third:]) - statistics.median(backlog[:third]))


def _why_not(found: Measurement) -> list[str]:
    in_between = found.orders_per_s * found.seconds * 2 / 3
    growth_max = max(BACKLOG_GROWTH_SHARE_MAX * in_between, BACKLOG_GROWTH_MAX_S * found.orders_per_s)
    reasons = [
        (bool(found.refused), f"refused: {found.refused}"),
        (bool(found.missed), f"{found.missed} missed"),
        (bool(found.unanswered), f"{found.unanswered} unanswered"),
        (bool(found.unsettled), f"{found.unsettled} not settled in time"),
        (not found.accepted, "nothing accepted"),
        (found.accepted_p99_ms >= ACCEPTED_P99_MAX_MS, f"accepted p99 {found.accepted_p99_ms:.0f} ms"),
        (found.backlog_growth > growth_max, f"backlog grew by {found.backlog_growth} orders"),
    ]
    return [reason for is_so, reason in reasons if is_so]


def _sorted_ms(latencies_ns: Iterable[int]) -> list[float]:
    return sorted(latency_ns / _NS_PER_MS for latency_ns in latencies_ns)


def _meets(stalls_ns: Sequence[tuple[int, int]], due_ns: int, settled_ns: int) -> bool:
    return any(due_ns < ended_ns and settled_ns > began_ns for began_ns, ended_ns in stalls_ns)
