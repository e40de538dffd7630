"""`report.html`: a judged run as one page that needs nothing else, for an engineer with ten seconds.

The verdict and why stand first; then what was claimed, when the storm blew, and the story of the first counterexample.
The page loads nothing, runs no script, and stays small however long the run was: every list has a bound and says how
much it leaves out. All text from outside (keys, details, names) is escaped; what does not print is spelled out.

Everything comes from the outcome and from queries over the evidence, so an old run's page can be written again.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED, Ruling
from harness.records import ProcessEvent
from harness.report.picture import draw
from harness.report.printable import printable
from harness.report.story import tell_story
from harness.report.timeline import read_timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from harness.evidence.store import Evidence
    from harness.invariants.judgement import Judgement
    from harness.invariants.verdict import Verdict
    from harness.plan import Plan
    from harness.records import FaultWindow
    from harness.report.story import Story
    from harness.run import Outcome

FILE_NAME = "report.html"
FINDINGS_TOLD = 20
FINDINGS_UNFOLDED = 3
"""So many findings stand open, the others behind a click: the timeline should be in sight without scrolling far."""

FAULTS_TOLD = 50
BOOTS_TOLD = 50
EVENTS_TOLD = 20
LOG_LINES_TOLD = 20
STORY_LINES_MAX = 40

_LOAD = "load:"
_UP = "up"
_DEFAULT_BACKEND = "embedded"
_NS_PER_S = 1_000_000_000
_SIGNS = {HOLDS: "✓", VIOLATED: "✗", UNKNOWN: "?"}
"""A ruling is told by its word and its sign; the colour only repeats it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """A ruling as it is shown. kind: its class in the style sheet."""

    word: str
    sign: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing to know about the run, with its name."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something to type. does: what it is good for."""

    does: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """One invariant's row. findings: the first of them; findings_total: how many there are."""

    id: str
    name: str
    claim: str
    badge: Badge
    examined: int
    reason: str
    findings: tuple[str, ...]
    findings_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedFault:
    """One fault window's row. window: when, counted from the first operation, and how long."""

    number: int
    name: str
    target: str
    window: str
    caught: str
    is_miss: bool
    touched: int
    verified: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeEvent:
    """Something that happened in a process's life. log: the lines that came with it, if any."""

    word: str
    at: str
    detail: str
    log: str
    is_unexpected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One life of one process."""

    process: str
    pid: int
    events: tuple[LifeEvent, ...]
    events_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """The first finding, with what every channel knows of its key. command: tells all of it."""

    invariant: str
    story: Story
    command: str


def write_html(outcome: Outcome, evidence: Evidence) -> Path:
    """Write `report.html` into the run's directory and return its path."""
    judgement, plan = outcome.judgement, outcome.plan
    timeline = read_timeline(evidence)
    origin_ns = None if timeline is None else timeline.origin_ns
    boots, boots_left_out = _boots(evidence, origin_ns)
    page = (
        _templates()
        .get_template("report.html")
        .render(
            run=outcome.directory.id,
            plan=plan,
            badge=_badge(judgement.state),
            why=_why(judgement),
            facts=(tuple(_planned(plan, origin_ns)), tuple(_measured(evidence, judgement))),
            commands=_commands(outcome),
            claims=tuple(_claim(verdict) for verdict in judgement.verdicts),
            picture=None if timeline is None else draw(timeline),
            faults=tuple(_fault(window, origin_ns) for window in judgement.faults[:FAULTS_TOLD]),
            faults_left_out=max(0, len(judgement.faults) - FAULTS_TOLD),
            unfolded=FINDINGS_UNFOLDED,
            vacuous=judgement.vacuous[:FAULTS_TOLD],
            unknown=_badge(UNKNOWN),
            counterexample=_counterexample(outcome, evidence),
            channels=judgement.channels,
            boots=boots,
            boots_left_out=boots_left_out,
            timings=tuple(outcome.timings.items()),
        )
    )
    path = outcome.directory.path / FILE_NAME
    path.write_text(page, encoding="utf-8")
    return path


def repeat_command(plan: Plan) -> str:
    """Return the command that carries the same plan out again."""
    if plan.experiment.startswith(_LOAD):
        words = ["load", plan.experiment.removeprefix(_LOAD)]
        words += ["--rate", f"{plan.rate_per_s:.12g}", "--duration", f"{plan.duration_s:.12g}"]
    elif plan.experiment == _UP:
        words = ["up"]
    else:
        words = ["run", plan.experiment]
    words += ["--seed", str(plan.seed)]
    words += plan.backend_words or ([] if plan.backend == _DEFAULT_BACKEND else ["--backend", plan.backend])
    if plan.mutant is not None:
        words += ["--mutant", plan.mutant]
    return shlex.join(["stormproof", *words])


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["ms"] = _milliseconds
    return environment


def _badge(state: Ruling) -> Badge:
    return Badge(word=state.value, sign=_SIGNS[state], kind=state.value.lower())


def _why(judgement: Judgement) -> str:
    """Return the verdict's one sentence."""
    verdicts = judgement.verdicts
    if judgement.state is HOLDS:
        examined = sum(verdict.examined for verdict in verdicts)
        faults = len(judgement.faults)
        storm = f"{_many(faults, 'fault')} seen to strike and to heal" if faults else "no fault played"
        return f"{_many(len(verdicts), 'invariant')} proved on {_many(examined, 'thing')} examined, {storm}."
    worst = [verdict for verdict in verdicts if verdict.state is judgement.state]
    if judgement.state is VIOLATED:
        first = worst[0]
        findings = f" ({_many(len(first.findings), 'finding')})" if first.findings else ""
        others = f" {_many(len(worst) - 1, 'other invariant')} violated too." if len(worst) > 1 else ""
        return f"{first.invariant} {first.name}: {first.reason}{findings}.{others}"
    if judgement.vacuous:
        return f"The storm proves nothing: {judgement.vacuous[0]}."
    if worst:
        return f"{worst[0].invariant} {worst[0].name} cannot be told: {worst[0].reason}."
    return "No invariant was judged."


def _planned(plan: Plan, origin_ns: int | None) -> Iterable[Fact]:
    yield Fact(name="experiment", value=plan.experiment)
    yield Fact(name="seed", value=str(plan.seed))
    yield Fact(name="backend", value=plan.backend)
    yield Fact(name="system", value=plan.system)
    if plan.mutant is not None:
        yield Fact(name="planted bug", value=plan.mutant.rpartition("/")[2])
    if origin_ns is not None:
        when = datetime.fromtimestamp(origin_ns // _NS_PER_S, UTC)
        yield Fact(name="began", value=f"{when:%Y-%m-%d %H:%M:%S} UTC")


_ACCEPTED_NS = "SELECT quantile_disc(ended_ns - intended_ns, [0.5, 0.99]) FROM operations WHERE outcome = 'ok'"
_SETTLED_NS = """
SELECT quantile_disc(s.settled_ns - o.intended_ns, [0.5, 0.99]) FROM operations o JOIN states s USING (key)
WHERE o.outcome = 'ok'
"""


def _measured(evidence: Evidence, judgement: Judgement) -> Iterable[Fact]:
    counts: Mapping[str, int] = dict(evidence.query("SELECT outcome, count(*) FROM operations GROUP BY outcome"))
    outcomes = ", ".join(f"{counts.get(outcome, 0):,} {outcome}" for outcome in ("ok", "failed", "unknown"))
    yield Fact(name="operations", value=f"{sum(counts.values()):,}", remark=outcomes)
    settled = evidence.count("SELECT count(*) FROM states WHERE settled_ns IS NOT NULL")
    read = evidence.count("SELECT count(*) FROM states")
    yield Fact(name="settled", value=f"{settled:,}", remark=f"of {_many(read, 'final state')} read")
    for name, quantiles_ns in (("until accepted", _ACCEPTED_NS), ("until settled", _SETTLED_NS)):
        ((quantiles,),) = evidence.query(quantiles_ns)
        if quantiles is not None:
            p50_ms, p99_ms = (quantile_ns / 1e6 for quantile_ns in quantiles)
            yield Fact(name=name, value=f"p50 {_milliseconds(p50_ms)}, p99 {_milliseconds(p99_ms)}")
    if judgement.recovery_s is not None:
        remark = "last heal to the last it held up"
        yield Fact(name="recovery", value=f"{judgement.recovery_s:.2f} s", remark=remark)


def _commands(outcome: Outcome) -> Iterable[Command]:
    directory = shlex.quote(str(outcome.directory.path))
    yield Command(does="carry it out again", line=repeat_command(outcome.plan))
    yield Command(does="judge this evidence again", line=f"stormproof check {directory}")


def _claim(verdict: Verdict) -> JudgedClaim:
    return JudgedClaim(
        id=verdict.invariant,
        name=verdict.name,
        claim=verdict.claim,
        badge=_badge(verdict.state),
        examined=verdict.examined,
        reason=verdict.reason,
        findings=tuple(finding.sentence() for finding in verdict.findings[:FINDINGS_TOLD]),
        findings_total=len(verdict.findings),
    )


def _fault(window: FaultWindow, origin_ns: int | None) -> PlayedFault:
    length = "never healed" if window.healed_ns is None else f"{(window.healed_ns - window.began_ns) / 1e9:.2f} s"
    if origin_ns is None:
        when = length
    elif window.healed_ns is None:
        when = f"from {_seconds(window.began_ns, origin_ns)}, {length}"
    else:
        when = f"{_seconds(window.began_ns, origin_ns)} to {_seconds(window.healed_ns, origin_ns)} ({length})"
    return PlayedFault(
        number=window.number,
        name=window.name,
        target=window.target,
        window=when,
        caught=f"{window.grip:,} {window.grip_unit}",
        is_miss=window.grip == 0,
        touched=window.touched,
        verified=window.verified,
        why=window.why,
    )


def _boots(evidence: Evidence, origin_ns: int | None) -> tuple[tuple[Boot, ...], int]:
    """Return the first boots of all processes, in the order of their starts, and how many more there were."""
    lives: dict[tuple[str, int], list[ProcessEvent]] = {}
    for event in evidence.select(ProcessEvent, "true ORDER BY at_ns"):
        lives.setdefault((event.process, event.pid), []).append(event)
    if origin_ns is None:
        origin_ns = next((events[0].at_ns for events in lives.values()), 0)
    boots = tuple(
        Boot(
            process=process,
            pid=pid,
            events=tuple(_life_event(event, origin_ns) for event in events[:EVENTS_TOLD]),
            events_left_out=max(0, len(events) - EVENTS_TOLD),
        )
        for (process, pid), events in lives.items()
    )
    return boots[:BOOTS_TOLD], max(0, len(boots) - BOOTS_TOLD)


def _life_event(event: ProcessEvent, origin_ns: int) -> LifeEvent:
    detail, _, log = event.detail.partition("\n")
    return LifeEvent(
        word=event.event,
        at=_seconds(event.at_ns, origin_ns),
        detail=detail,
        log="\n".join(printable(line) for line in log.splitlines()[-LOG_LINES_TOLD:]),
        is_unexpected=detail.startswith("unexpected"),
    )


def _counterexample(outcome: Outcome, evidence: Evidence) -> Counterexample | None:
    """Tell the story of the first finding; None when every claim holds or nothing was found."""
    verdicts = sorted(outcome.judgement.verdicts, key=lambda verdict: verdict.state is not VIOLATED)
    told = next((verdict for verdict in verdicts if verdict.state is not HOLDS and verdict.findings), None)
    if told is None:
        return None
    key = told.findings[0].key
    return Counterexample(
        invariant=f"{told.invariant} {told.name}",
        story=tell_story(evidence, key, lines_max=STORY_LINES_MAX),
        command=shlex.join(["stormproof", "explain", str(outcome.directory.path), key]),
    )


def _seconds(at_ns: int, origin_ns: int) -> str:
    return f"{(at_ns - origin_ns) / _NS_PER_S:.2f} s"


def _milliseconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"  # noqa: PLR2004 - a second


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
