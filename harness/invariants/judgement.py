"""A whole run, judged: every invariant's verdict, the faults that proved vacuous, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.verdict import HOLDS, UNKNOWN, Ruling, Verdict, worst
from harness.records import Channel, FaultWindow, LoadSummary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.evidence.store import Evidence
    from harness.invariants.invariant import Invariant


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a run proves.

    vacuous: one sentence for each thing that makes the run prove less than was planned: a fault that did not inject,
    did not heal or touched nothing in flight, a load that fell short, a load of which hardly anything was accepted, or
    not even before the storm, a process that died by itself. Any of them makes the run UNKNOWN: a storm that did not
    blow proves nothing.
    died: those of these sentences that tell of a process that died by itself.
    outcomes: how many operations had each outcome.
    recovery_s: from the last heal until the last operation begun before it was final; None without faults, and when an
    accepted one never was.
    """

    verdicts: tuple[Verdict, ...]
    channels: tuple[Channel, ...]
    faults: tuple[FaultWindow, ...]
    load: LoadSummary | None
    vacuous: tuple[str, ...]
    died: tuple[str, ...] = ()
    outcomes: Mapping[str, int]
    recovery_s: float | None

    @property
    def state(self) -> Ruling:
        """The worst of all verdicts, and UNKNOWN when the storm was not what was planned."""
        rulings = [verdict.state for verdict in self.verdicts]
        return worst([*rulings, UNKNOWN] if self.vacuous else rulings)

    @property
    def holds(self) -> bool:
        """True only when everything was proved."""
        return self.state is HOLDS

    def explain(self) -> str:
        """Say in plain lines what holds, what does not and why; meant for an assertion message."""
        lines = [f"{self.state}"]
        for verdict in self.verdicts:
            lines.append(f"  {verdict.state:<8} {verdict.invariant} {verdict.name}: {verdict.examined} examined")
            if verdict.reason:
                lines.append(f"           {verdict.reason}")
            lines.extend(f"           - {finding.sentence()}" for finding in verdict.findings[:_FINDINGS_TOLD])
            if len(verdict.findings) > _FINDINGS_TOLD:
                lines.append(f"           ... and {len(verdict.findings) - _FINDINGS_TOLD} more")
        lines.extend(f"  UNKNOWN  {sentence}" for sentence in self.vacuous)
        return "\n".join(lines)


_FINDINGS_TOLD = 5

ACCEPTED_SHARE_MIN = 0.5
"""With less than this share of the operations of a kind accepted, HOLDS would be about next to nothing."""

CALM_SHARE_MIN = 0.75
CALM_COUNT_MIN = 10
"""Of at least so many operations of a kind that were over before the first fault: what was refused then was refused by
something else than the storm."""


def judge(evidence: Evidence, invariants: Iterable[Invariant], *, planned_faults: int = 0) -> Judgement:
    """Rule on every invariant. A pure function of the evidence; it needs no broker and changes nothing.

    planned_faults: how many windows the plan asks for; fewer on record make the run UNKNOWN.
    """
    faults = tuple(sorted(evidence.select(FaultWindow), key=lambda window: window.number))
    load = next(iter(evidence.select(LoadSummary)), None)
    died = _died(evidence)
    return Judgement(
        verdicts=tuple(invariant.judge(evidence) for invariant in invariants),
        channels=tuple(evidence.select(Channel)),
        faults=faults,
        load=load,
        vacuous=(
            *(sentence for window in faults if (sentence := vacuity_of(window))),
            *_unplayed(len(faults), planned_faults),
            *_shortfall(load),
            *_hardly_accepted(evidence),
            *_refused_in_calm(evidence),
            *died,
        ),
        died=died,
        outcomes={
            str(outcome): count
            for outcome, count in evidence.query(
                "SELECT outcome, count(*) FROM operations GROUP BY outcome ORDER BY outcome"
            )
        },
        recovery_s=_recovery_s(evidence),
    )


def vacuity_of(window: FaultWindow) -> str:
    """Return why a fault proves nothing, an empty string when it bit."""
    what = f"fault {window.name} on {window.target}"
    if window.healed_ns is None:
        return f"{what} never healed: {window.why}"
    if not window.verified:
        return f"{what} was not verified: {window.why}"
    if window.grip == 0:
        return f"{what} is vacuous: it caught no {window.grip_unit}, so nothing went through what it broke"
    if window.touched == 0:
        return f"{what} is vacuous: no operation in flight was held up by it"
    return ""


def _unplayed(played: int, planned: int) -> tuple[str, ...]:
    return (f"{planned} faults were planned, {played} are on record",) if played < planned else ()


def _shortfall(load: LoadSummary | None) -> tuple[str, ...]:
    if load is None or load.missed_slots == 0:
        return ()
    sentence = (
        f"the load fell short: {load.missed_slots} of {load.slots} operations that were due were never begun "
        f"({load.rate_reached_per_s:g}/s of {load.rate_asked_per_s:g}/s asked)"
    )
    return (sentence,)


def _hardly_accepted(evidence: Evidence) -> tuple[str, ...]:
    return tuple(
        f"hardly anything was accepted: {accepted} of {asked} operations of kind {kind}, so what is promised of them "
        "was hardly tried"
        for kind, accepted, asked in evidence.query(_ACCEPTED.format(where="true"))
        if accepted < asked * ACCEPTED_SHARE_MIN
    )


def _refused_in_calm(evidence: Evidence) -> tuple[str, ...]:
    calm = "ended_ns < (SELECT min(began_ns) FROM faults)"
    return tuple(
        f"before the first fault only {accepted} of {asked} operations of kind {kind} were accepted, so something else "
        "than the storm is wrong"
        for kind, accepted, asked in evidence.query(_ACCEPTED.format(where=calm))
        if asked >= CALM_COUNT_MIN and accepted < asked * CALM_SHARE_MIN
    )


_ACCEPTED = """
SELECT kind, count(*) FILTER (outcome = 'ok'), count(*) FROM operations WHERE {where} GROUP BY kind ORDER BY kind
"""


def _died(evidence: Evidence) -> tuple[str, ...]:
    rows = evidence.query(
        "SELECT process, detail FROM processes WHERE event = 'exited' AND detail LIKE 'unexpected%' ORDER BY at_ns"
    )
    return tuple(f"{process} died by itself: {detail.splitlines()[0].split(';')[0]}" for process, detail in rows)


def _recovery_s(evidence: Evidence) -> float | None:
    rows = evidence.query(
        """
        SELECT CASE WHEN bool_and(s.settled_ns IS NOT NULL OR o.outcome <> 'ok')
                    THEN (max(greatest(s.settled_ns, heal.at_ns)) - any_value(heal.at_ns)) / 1e9 END
        FROM operations o LEFT JOIN states s USING (key)
        CROSS JOIN (SELECT max(healed_ns) AS at_ns FROM faults) heal
        WHERE o.began_ns < heal.at_ns
        """
    )
    return None if rows[0][0] is None else float(rows[0][0])
