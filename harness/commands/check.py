"""`stormproof check RUN`: judge a saved run again, with today's invariants, without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.commands.conducting import print_json, tell, write_reports
from harness.plan import read_plan
from harness.report.document import verdict_document
from harness.run import judge_again
from harness.runs import find_run
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse


async def execute(options: argparse.Namespace) -> int:
    """Judge, write the reports anew, and end with the verdict's exit code."""
    directory = find_run(options.runs_dir, options.run)
    outcome = judge_again(directory, configured_system(), read_plan(directory.path))
    write_reports(outcome)
    tell(outcome, options)
    if options.json:
        print_json(verdict_document(outcome))
    return outcome.judgement.state.exit_code
