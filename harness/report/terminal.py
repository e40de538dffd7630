"""On a terminal: a judged run (what was judged, what was found, how much was seen), and the story of one key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from harness.report.printable import printable
from harness.report.tables import console_for, near, table_of

if TYPE_CHECKING:
    from typing import TextIO

    from rich.table import Table

    from harness.invariants.judgement import Judgement
    from harness.report.story import Story
    from harness.run import Outcome

_FINDINGS_TOLD = 5
_COLOURS = {HOLDS: "green", VIOLATED: "bold red", UNKNOWN: "yellow"}


def print_report(outcome: Outcome, stream: TextIO) -> None:
    """Print the report; colours only where the stream is a terminal."""
    console = console_for(stream)
    plan, judgement = outcome.plan, outcome.judgement
    planted = f"  planted bug {near(plan.mutant)}" if plan.mutant else ""
    console.print()
    console.print(
        escape(f"{plan.experiment}  seed {plan.seed}  backend {plan.backend}{planted}"), style="bold", soft_wrap=True
    )
    console.print(_invariants(judgement))
    for verdict in judgement.verdicts:
        for finding in verdict.findings[:_FINDINGS_TOLD]:
            console.print(f"  {verdict.invariant}  {escape(finding.sentence())}", soft_wrap=True)
        if len(verdict.findings) > _FINDINGS_TOLD:
            console.print(f"  {verdict.invariant}  ... and {len(verdict.findings) - _FINDINGS_TOLD} more")
    if judgement.faults:
        console.print(_faults(judgement))
    console.print(_channels(judgement))
    for sentence in judgement.vacuous:
        console.print(escape(sentence), style="yellow", soft_wrap=True)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in judgement.outcomes.items())
    console.print(f"operations: {counted or 'none'}")
    if judgement.load is not None:
        load = judgement.load
        console.print(
            f"load: {load.begun} operations begun, {load.rate_reached_per_s:g}/s of {load.rate_asked_per_s:g}/s asked; "
            f"p50 {load.p50_ms} ms, p99 {load.p99_ms} ms from the intended start",
            soft_wrap=True,
        )
        if load.note:
            console.print(escape(load.note), soft_wrap=True)
    if judgement.recovery_s is not None:
        console.print(
            f"recovery: the last operation that the fault held up settled {judgement.recovery_s:.2f} s after the heal"
        )
    console.print("timings: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in outcome.timings.items()))
    console.print(f"run: {escape(near(outcome.directory.path))}", soft_wrap=True)
    console.print(f"[{_COLOURS[judgement.state]}]{judgement.state}[/]")


def print_story(story: Story, stream: TextIO) -> None:
    """Print the story of one key as a table, in the order of time."""
    table = table_of(">at, ms", "channel", "who", "what", ">took, ms")
    for line in story.lines:
        # As Text, not as words: what comes from outside is neither markup nor `:emoji:`.
        table.add_row(
            f"{line.at_ms:.1f}",
            line.channel,
            Text(printable(line.who)),
            Text(printable(line.what)),
            "" if line.took_ms is None else f"{line.took_ms:.1f}",
        )
    console = console_for(stream)
    console.print(table)
    if story.left_out:
        console.print(f"{story.left_out:,} more rows are left out, spans first", style="yellow")


def print_findings(judgement: Judgement, key: str, stream: TextIO) -> None:
    """Print what the invariants found about one key; to find nothing is not to hold, so no verdict is given."""
    table = table_of("verdict", "", "invariant", "finding")
    for verdict in judgement.verdicts:
        about_key = [finding for finding in verdict.findings if finding.key == key]
        for number, finding in enumerate(about_key[:_FINDINGS_TOLD]):
            named = (f"[{_COLOURS[verdict.state]}]{verdict.state}[/]", verdict.invariant, escape(verdict.name))
            table.add_row(*(named if number == 0 else ("", "", "")), Text(printable(finding.sentence())))
        if len(about_key) > _FINDINGS_TOLD:
            table.add_row("", "", "", f"... and {len(about_key) - _FINDINGS_TOLD} more")
    console = console_for(stream)
    if table.row_count:
        console.print(table)
    else:
        console.print(f"no invariant has a finding about it ({len(judgement.verdicts)} judged)")


def _invariants(judgement: Judgement) -> Table:
    table = table_of("verdict", "", "invariant", ">examined", "why")
    for verdict in judgement.verdicts:
        table.add_row(
            f"[{_COLOURS[verdict.state]}]{verdict.state}[/]",
            verdict.invariant,
            escape(verdict.name),
            str(verdict.examined),
            escape(verdict.reason),
        )
    return table


def _faults(judgement: Judgement) -> Table:
    table = table_of("fault", "target", ">seconds", ">caught", ">operations touched", "verified")
    for window in judgement.faults:
        seconds = "-" if window.healed_ns is None else f"{(window.healed_ns - window.began_ns) / 1e9:.2f}"
        table.add_row(
            window.name,
            escape(window.target),
            seconds,
            f"{window.grip} {window.grip_unit}",
            str(window.touched),
            "yes" if window.verified else escape(f"no: {window.why}"),
        )
    return table


def _channels(judgement: Judgement) -> Table:
    table = table_of("channel", ">expected", ">received", "complete")
    for channel in judgement.channels:
        table.add_row(
            channel.name,
            "?" if channel.expected is None else str(channel.expected),
            str(channel.received),
            escape(": ".join(filter(None, ("yes" if channel.complete else "no", channel.why)))),
        )
    return table
