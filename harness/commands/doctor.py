"""`stormproof doctor`: what works on this host, what not, why, and what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from harness.commands.conducting import print_json, progress
from harness.doctor.ability import Ability, broken, works
from harness.doctor.external import choice_of
from harness.doctor.page import print_report
from harness.doctor.rehearsal import rehearsals, rehearse
from harness.doctor.report import put_together
from harness.doctor.rounds import look_around
from harness.environment.topology import Topology
from harness.errors import UsageError
from harness.report.tables import console_for
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse

    from harness.doctor.report import Report
    from harness.system_under_test import FaultKind

SCHEMA = "stormproof.doctor/1"
SYSTEM = "system under test"


async def execute(options: argparse.Namespace) -> int:
    """Print what works; ends with 0 also when something does not, for the question was answered."""
    report = await examine_host(options)
    if options.json:
        print_json({"schema": SCHEMA, **report.document()})
    else:
        print_report(report, console_for(sys.stdout))
    return 0


async def examine_host(options: argparse.Namespace) -> Report:
    """Look at everything and, when that is wished, start every backend. Raises UsageError for URLs that are none."""
    somebodys = choice_of(options.nats_url, options.toxiproxy_url)
    system, faults, topology = _system()
    parts = (*await look_around(options.runs_dir, somebodys), system)
    report = put_together(parts, faults=faults)
    if not options.thorough:
        return report
    say = progress()
    # One after the other, so that each has the machine to itself.
    rehearsed = [await rehearse(choice, report, topology, say) for choice in rehearsals(somebodys)]
    return put_together(parts, faults=faults, rehearsals=rehearsed)


def _system() -> tuple[Ability, tuple[FaultKind, ...], Topology]:
    # Somebody who has just installed the harness has no system to test yet, and asks all the same.
    try:
        system = configured_system()
    except UsageError as error:
        why, _, remedy = str(error).partition(": ")
        return broken(SYSTEM, why, remedy), (), Topology(processes=(), links=())
    processes = ", ".join(spec.name for spec in system.topology.processes)
    return works(SYSTEM, f"{system.name}: {processes}"), system.faults, system.topology
