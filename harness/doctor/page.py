"""The doctor's report as people read it: tables, and below them the commands to paste.

Promises: nothing is wider than the terminal but the commands, which stand on lines of their own and are never folded.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from harness.doctor.ability import Ability, State
from harness.doctor.report import Rehearsal, Report, Spread
from harness.report.printable import printable
from harness.report.tables import table_of

_COLOURS = {State.WORKS: "green", State.LATER: "cyan", State.UNKNOWN: "yellow", State.BROKEN: "bold red"}
_CELLS = {State.WORKS: "works", State.LATER: "first run", State.UNKNOWN: "?", State.BROKEN: "no"}


def print_report(report: Report, console: Console) -> None:
    """Print it."""
    _print_parts(report, console)
    _print_backends(report, console)
    _print_matrix(report, console)
    if report.rehearsals:
        _print_rehearsals(report.rehearsals, console)
    _print_remedies(report, console)


def _print_parts(report: Report, console: Console) -> None:
    table = table_of("parts", "", "")
    for each in report.parts:
        table.add_row(each.name, _word(each), Text(printable(", ".join(filter(None, (each.version, each.why))))))
    console.print(table)
    console.print()


def _print_backends(report: Report, console: Console) -> None:
    table = table_of("backends", "", "")
    for each in report.backends:
        stands_on = f"stands on {', '.join(report.needs[each.name])}"
        table.add_row(each.name, _word(each), Text(printable(each.why or stands_on)))
    console.print(table)
    console.print()


def _print_matrix(report: Report, console: Console) -> None:
    names = [backend.name for backend in report.backends]
    working = {backend.name for backend in report.backends if backend.works}
    for title, spreads in (("faults", report.faults), ("options", report.options)):
        table = table_of(title, *names)
        for spread in spreads:
            table.add_row(spread.ability.name, *(_cell(spread.on[name]) for name in names))
        console.print(table)
        for why in _exceptions(spreads, working):
            console.print(f"  {escape(why)}", style="dim", soft_wrap=True)
        console.print()


def _print_rehearsals(rehearsals: Sequence[Rehearsal], console: Console) -> None:
    table = table_of("started for real", "", ">seconds", "")
    for each in rehearsals:
        seconds = "" if each.ability.seconds is None else f"{each.ability.seconds:.2f}"
        table.add_row(
            escape(" ".join(each.words) or each.ability.name),
            _word(each.ability),
            seconds,
            Text(printable(each.ability.why)),
        )
    console.print(table)
    console.print()


def _print_remedies(report: Report, console: Console) -> None:
    """What is to be done, once for each thing to do, and for what it is good."""
    helps: dict[str, list[str]] = {}
    for part in report.parts:
        if part.remedy:
            helps.setdefault(part.remedy, []).append(part.name)
    for rehearsal in report.rehearsals:
        if rehearsal.ability.remedy and rehearsal.ability.remedy not in helps:
            helps.setdefault(rehearsal.ability.remedy, []).append(" ".join(rehearsal.words) or rehearsal.ability.name)
    if not helps:
        console.print("nothing has to be done")
        return
    console.print("[bold]what to do[/]")
    for remedy, names in helps.items():
        console.print(f"  {escape(', '.join(names))}:", soft_wrap=True)
        # Neither folded nor marked up: it is to be copied as it stands.
        console.print(Text(f"    {printable(remedy)}"), soft_wrap=True)


def _exceptions(spreads: Sequence[Spread], working: Collection[str]) -> list[str]:
    """Why a thing does not work on a backend that works itself, or only on a condition; each reason once."""
    told: dict[str, list[str]] = {}
    for spread in spreads:
        for name, ability in spread.on.items():
            if name in working and (ability.remedy or not ability.works):
                told.setdefault(f"{spread.ability.name}: {ability.why}", []).append(name)
    return [f"{', '.join(names)}: {why}" for why, names in told.items()]


def _word(ability: Ability) -> str:
    return f"[{_COLOURS[ability.state]}]{ability.state}[/]"


def _cell(ability: Ability) -> str:
    return f"[{_COLOURS[ability.state]}]{_CELLS[ability.state]}[/]"
