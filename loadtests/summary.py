"""The summary of a load: what was asked, what was reached, and who was the limit. `load.json` beside the history.

Promises: exact percentiles (nearest rank over every operation); latency counts from the intended start; an operation
without an answer counts with the time after which it was given up, which is less than it would have taken; written
whole or not at all.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from harness.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from loadtests.recording import Recording

FILE_NAME = "load.json"
FORMAT = 1
CANNOT_SAY = -1
LAG_MS = 20.0
"""A free user that begins so late says that Locust itself did not run."""

CPU_SHARE_FULL = 0.85
"""One core is all a Locust process can use; near it, answers lie unread and users look busy."""

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Exact percentiles in milliseconds; all 0 of nothing."""

    count: int
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one or several load tests of one Locust process asked for, and how the schedule went.

    slots: how many came due. overdue_slots: begun after they were due, because no user was free then. lag_max_ms: how
    late a user that was free began at worst. users: how many could be in flight. duration_s: without the drain.
    """

    seed: int
    rate_per_s: float
    duration_s: float
    slots: int
    missed_slots: int
    overdue_slots: int
    lag_max_ms: float
    users: int
    users_busy_max: int
    drain_s: float
    cpu_s: float

    def plus(self, later: Asked) -> Asked:
        """Return both tests as one, as the history has them; what cannot be added is the later one's."""
        return replace(
            later,
            duration_s=self.duration_s + later.duration_s,
            slots=self.slots + later.slots,
            missed_slots=self.missed_slots + later.missed_slots,
            overdue_slots=self.overdue_slots + later.overdue_slots,
            lag_max_ms=max(self.lag_max_ms, later.lag_max_ms),
            users=max(self.users, later.users),
            users_busy_max=max(self.users_busy_max, later.users_busy_max),
            drain_s=max(self.drain_s, later.drain_s),
            cpu_s=self.cpu_s + later.cpu_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All figures of a load. begun is the sum of ok, failed and unknown.

    latency_ms: of all operations, latency_ok_ms: of the accepted ones, both from the intended start. begun_late_ms: how
    long after the intended start they were sent. unanswered: how many of the unknown ones got no answer at all.
    cpu_us: of this process, per operation. cpu_share: how much of one core it had while placing orders. note: what a
    reader must know of these figures, else empty.
    """

    format: int = FORMAT
    seed: int
    begun: int
    ok: int
    failed: int
    unknown: int
    unanswered: int
    slots: int
    missed_slots: int
    overdue_slots: int
    lag_max_ms: float
    rate_asked_per_s: float
    rate_reached_per_s: float
    duration_s: float
    drain_s: float
    users: int
    users_busy_max: int
    cpu_us: float
    cpu_share: float
    latency_ms: Percentiles
    latency_ok_ms: Percentiles
    begun_late_ms: Percentiles
    note: str

    def sentence(self) -> str:
        """Return the figures as one line for a person."""
        return (
            f"{self.begun} orders begun, {self.rate_reached_per_s:g}/s of {self.rate_asked_per_s:g}/s asked: "
            f"{self.ok} ok, {self.failed} failed, {self.unknown} unknown, {self.missed_slots} slots missed; "
            f"p50 {self.latency_ms.p50:g}, p99 {self.latency_ms.p99:g}, max {self.latency_ms.max:g} ms "
            "from the intended start"
        )

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        _write(path, asdict(self))


def write_unfinished(path: Path) -> None:
    """Write, in place of a summary, that orders are being placed and nobody can say how many."""
    _write(path, {"format": FORMAT, "begun": CANNOT_SAY})


def summarize(recording: Recording, asked: Asked) -> Summary:
    """Work out the figures. Takes about 0.3 s for a million operations."""
    return Summary(
        seed=asked.seed,
        begun=recording.begun,
        ok=recording.count(Outcome.OK),
        failed=recording.count(Outcome.FAILED),
        unknown=recording.count(Outcome.UNKNOWN),
        unanswered=recording.unanswered,
        slots=asked.slots,
        missed_slots=asked.missed_slots,
        overdue_slots=asked.overdue_slots,
        lag_max_ms=round(asked.lag_max_ms, 3),
        rate_asked_per_s=asked.rate_per_s,
        rate_reached_per_s=round(recording.begun / asked.duration_s, 1) if asked.duration_s else 0.0,
        duration_s=round(asked.duration_s, 3),
        drain_s=round(asked.drain_s, 3),
        users=asked.users,
        users_busy_max=asked.users_busy_max,
        cpu_us=round(asked.cpu_s / recording.begun * 1e6, 1) if recording.begun else 0.0,
        cpu_share=round(_cpu_share(asked), 3),
        latency_ms=percentiles(recording.latencies_ns.values()),
        latency_ok_ms=percentiles([recording.latencies_ns[Outcome.OK]]),
        begun_late_ms=percentiles([recording.begun_late_ns]),
        note=_note(recording, asked),
    )


def percentiles(parts: Iterable[Sequence[int]]) -> Percentiles:
    """Return the nearest-rank percentiles of all parts together, given in nanoseconds."""
    values = array("q")
    for part in parts:
        values.extend(part)
    ordered = sorted(values)

    def at(quantile: float) -> float:
        if not ordered:
            return 0.0
        return round(ordered[max(0, math.ceil(quantile * len(ordered)) - 1)] / _NS_PER_MS, 3)

    return Percentiles(count=len(ordered), p50=at(0.5), p90=at(0.9), p99=at(0.99), p99_9=at(0.999), max=at(1.0))


def _write(path: Path, document: dict[str, object]) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _cpu_share(asked: Asked) -> float:
    elapsed_s = asked.duration_s + asked.drain_s
    return asked.cpu_s / elapsed_s if elapsed_s else 0.0


def _note(recording: Recording, asked: Asked) -> str:
    notes = []
    is_lagging = asked.lag_max_ms > LAG_MS or _cpu_share(asked) > CPU_SHARE_FULL
    waited = asked.overdue_slots + asked.missed_slots
    if waited:
        are_users_the_limit = asked.users_busy_max >= asked.users and not is_lagging
        notes.append(
            f"{'users were the limit: ' if are_users_the_limit else ''}"
            f"{waited} of {asked.slots} slots came due when no user was free "
            f"({asked.missed_slots} of them were never begun; "
            f"{asked.users_busy_max} of {asked.users} users were busy at most)"
        )
    if is_lagging:
        notes.append(
            f"Locust itself was late: it had {_cpu_share(asked):.0%} of a core, and a user that was free began up to "
            f"{asked.lag_max_ms:.0f} ms late; the latencies include this"
        )
    if recording.unanswered:
        notes.append(f"{recording.unanswered} orders got no answer; their latencies are lower bounds")
    return "; ".join(notes)
