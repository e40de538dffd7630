"""Verdicts on storms as text for people, and as one JSON document for others."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from system.benchmarks.verdicts import Answer, Life, Spread, Verdict

SCHEMA = "stormproof.storms/1"

_WIDTH = 60


def table(name: str, conditions: str, found: Verdict) -> str:
    """One verdict at length. conditions: under which it was had, in words."""
    refusals = ", ".join(f"{count} x {status}" for status, count in found.refusals.items())
    answers = found.answers
    gone = "never" if found.backlog_gone_s is None else f"{found.backlog_gone_s:.1f} s"
    lines = [
        f"{name}, {conditions}: the storm took {found.storm_s:.1f} s",
        _row("orders asked", found.asked),
        _row("202", answers[Answer.ACCEPTED]),
        _row("503 unknown (with order_id)", answers[Answer.UNKNOWN]),
        _row("refused (503, 429, 4xx without)", f"{answers[Answer.REFUSED]}{f' ({refusals})' if refusals else ''}"),
        _row("unanswered connections", answers[Answer.LOST]),
        _row("due and never sent", found.missed),
        "  must be 0:",
        *(_row(f"  {words}", seen if isinstance(seen, int) else len(seen)) for words, seen in found.musts.items()),
        "  figures:",
        _row("  orders of unknown outcome that exist / do not", f"{found.unknown_existing} / {found.unknown_absent}"),
        _row("  longest time to settle", f"{found.longest_settle_s:.1f} s"),
        _row("  from the end of the storm until the backlog is gone", gone),
        _row("  breaker openings", found.breaker_openings),
        _row("  provider calls per order, mean / max", _spread(found.calls)),
        _row("  deliveries per order, mean / max", _spread(found.deliveries)),
        "  restarts (exit codes of the killed, then at the end):",
        *(_row(f"  {part}", _life(life)) for part, life in found.lives.items()),
    ]
    lines += [f"  VIOLATED: {sentence}" for sentence in found.violated]
    lines += [f"  BROKEN: {sentence}" for sentence in found.broken]
    return "\n".join([*lines, *(["  every must holds"] if found.holds else [])])


def document(conditions: Mapping[str, object], found: Sequence[tuple[str, Verdict]], broke: Mapping[str, str]) -> str:
    """All of it as JSON. conditions: what was asked for. broke: storms without a verdict, and why there is none."""
    storms = [
        {
            "storm": name,
            "holds": verdict.holds,
            "violated": verdict.violated,
            "broken": verdict.broken,
            **dataclasses.asdict(verdict),
        }
        for name, verdict in found
    ]
    return json.dumps({"schema": SCHEMA, **conditions, "storms": storms, "broke": broke}, indent=2)


def _row(words: str, figure: object) -> str:
    return f"  {words:<{_WIDTH}}{figure}"


def _spread(spread: Spread) -> str:
    return f"{spread.mean:.3f} / {spread.max}"


def _life(life: Life) -> str:
    killed = ", ".join(f"{count} x {code}" for code, count in Counter(life.killed).items())
    return f"{len(life.killed)} ({killed + ', then ' if killed else ''}{life.last})"
