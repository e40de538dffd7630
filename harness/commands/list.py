"""`stormproof list`: experiments, faults, invariants, load profiles and planted bugs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.markup import escape

from harness.commands.conducting import print_json
from harness.planting import read_bugs
from harness.report.tables import console_for, table_of
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse

SCHEMA = "stormproof.list/1"
Rows = list[dict[str, object]]


async def execute(options: argparse.Namespace) -> int:
    """Print what there is."""
    system = configured_system()
    listed: dict[str, Rows] = {
        "experiments": [{"name": each.name, "summary": each.summary} for each in system.experiments],
        "faults": [{"name": each.name, "summary": each.summary} for each in system.faults],
        "invariants": [
            {"id": each.id, "name": each.name, "claim": each.claim, "needs": list(each.needs)}
            for each in system.invariants
        ],
        "load_profiles": [
            {
                "name": each.name,
                "summary": f"{each.summary}; {each.rate_per_s:g}/s for {each.duration_s:g} s unless told",
            }
            for each in system.load_profiles
        ],
        "mutants": [
            {"name": each.name, "summary": each.says.splitlines()[0]}
            for each in (read_bugs(system.planted_bugs) if system.planted_bugs.is_dir() else ())
        ],
    }
    if options.json:
        print_json({"schema": SCHEMA, **listed})
        return 0
    console = console_for(sys.stdout)
    for kind, rows in listed.items():
        table = table_of(has_header=False)
        for row in rows:
            table.add_row(*(escape(str(row[name])) for name in ("id", "name", "summary", "claim") if name in row))
        console.print(f"[bold]{kind.replace('_', ' ')}[/]")
        console.print(table)
        console.print()
    return 0
