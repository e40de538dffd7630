"""`stormproof mutants`: plant each bug, run its experiment, and see whether the right invariant names it.

A planted bug is *caught* when every invariant it expects says VIOLATED and no other does; *unknown* when the run could
not tell or broke (a process did not start, or died by itself: a crash violates much, whatever the bug); *missed*
otherwise. The exit code is 0 when all are caught, 1 when one was
missed, 2 when one is unknown.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

from harness.commands.conducting import choice_of, print_json, seed_of, tell
from harness.commands.run import carry_out_experiment, ensure_possible
from harness.errors import StormproofError, UsageError, leaf_of
from harness.invariants.verdict import UNKNOWN, VIOLATED
from harness.planting import check_bug, read_bugs
from harness.report.tables import console_for, table_of
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse
    from collections.abc import Set as AbstractSet
    from typing import TextIO

    from harness.invariants.judgement import Judgement
    from harness.planting import PlantedBug

SCHEMA = "stormproof.mutants/1"
CAUGHT, MISSED, UNTOLD = "caught", "missed", "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One row of the kill matrix. why: the first finding, or what stood in the way. run: empty when it broke."""

    name: str
    says: str
    experiment: str
    run: str
    expected: tuple[str, ...]
    violated: tuple[str, ...]
    unrelated: tuple[str, ...]
    result: str
    why: str


async def execute(options: argparse.Namespace) -> int:
    """Run every planted bug and print the matrix."""
    system = configured_system()
    bugs = read_bugs(options.directory or system.planted_bugs)
    choice = choice_of(options, system)
    for bug in bugs:
        check_bug(bug, system)
        ensure_possible(system.experiment(bug.experiment), choice)
    seed = seed_of(options)
    kills = []
    for bug in bugs:
        try:
            outcome = await carry_out_experiment(system, system.experiment(bug.experiment), seed, options, bug)
        except (StormproofError, ExceptionGroup) as error:
            ours = leaf_of(error)
            if not isinstance(ours, StormproofError) or isinstance(ours, UsageError):
                raise
            # One broken run must not take the other rows with it.
            kills.append(_row(bug, result=UNTOLD, why=str(ours)))
            continue
        kills.append(kill_of(bug, outcome.judgement, str(outcome.directory.path)))
        if kills[-1].result != CAUGHT:
            # The whole report goes with a bug that got away: it is the harness that failed here.
            tell(outcome, options)
    caught = sum(kill.result == CAUGHT for kill in kills)
    _print_matrix(kills, sys.stderr if options.json else sys.stdout)
    if options.json:
        print_json(
            {"schema": SCHEMA, "mutants": [asdict(kill) for kill in kills], "score": round(caught / len(kills), 4)}
        )
    if any(kill.result == MISSED for kill in kills):
        return VIOLATED.exit_code
    return 0 if caught == len(kills) else UNKNOWN.exit_code


def kill_of(bug: PlantedBug, judgement: Judgement, run: str) -> Kill:
    """Hold a judgement against what the bug expects."""
    violated = {verdict.invariant: verdict for verdict in judgement.verdicts if verdict.state is VIOLATED}
    unknown = {verdict.invariant: verdict for verdict in judgement.verdicts if verdict.state is UNKNOWN}
    expected = set(bug.expected)
    unrelated = set(violated) - expected
    if judgement.died:
        result, why = UNTOLD, f"{judgement.died[0]}: what is violated may be the crash's doing, and not the bug's"
    elif expected <= set(violated) and not unrelated:
        result, why = CAUGHT, violated[min(expected)].reason
    elif not unrelated and (expected - set(violated) <= set(unknown) or judgement.vacuous):
        result = UNTOLD
        why = "; ".join([*judgement.vacuous, *(unknown[name].reason for name in sorted(expected & set(unknown)))])
    else:
        result = MISSED
        unseen = sorted(expected - set(violated))
        why = "; ".join(
            [
                *([f"{', '.join(unseen)} did not see it"] if unseen else []),
                *(f"{name} is violated too: {violated[name].reason}" for name in sorted(unrelated)),
            ]
        )
    return _row(bug, result=result, why=why, run=run, violated=set(violated), unrelated=unrelated)


def _row(
    bug: PlantedBug,
    *,
    result: str,
    why: str,
    run: str = "",
    violated: AbstractSet[str] = frozenset(),
    unrelated: AbstractSet[str] = frozenset(),
) -> Kill:
    return Kill(
        name=bug.name,
        says=bug.says.splitlines()[0],
        experiment=bug.experiment,
        run=run,
        expected=bug.expected,
        violated=tuple(sorted(violated)),
        unrelated=tuple(sorted(unrelated)),
        result=result,
        why=why,
    )


def _print_matrix(kills: list[Kill], stream: TextIO) -> None:
    console = console_for(stream)
    table = table_of("planted bug", "experiment", "expected", "violated", "result", "why")
    colours = {CAUGHT: "green", MISSED: "bold red", UNTOLD: "yellow"}
    for kill in kills:
        table.add_row(
            escape(kill.name),
            kill.experiment,
            " ".join(kill.expected),
            " ".join(kill.violated) or "-",
            f"[{colours[kill.result]}]{kill.result}[/]",
            escape(kill.why),
        )
    console.print()
    console.print(table)
    console.print(f"{sum(kill.result == CAUGHT for kill in kills)} of {len(kills)} planted bugs caught")
