"""`stormproof check RUN`: judge a saved run again, with today's invariants, without a broker."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.commands.conducting import print_json, tell, write_reports
from harness.plan import read_plan
from harness.report.document import FILE_NAME, verdict_document
from harness.run import judge_again
from harness.runs import find_run
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from pathlib import Path


async def execute(options: argparse.Namespace) -> int:
    """Judge, tell, write the reports anew, and end with the verdict's exit code.

    The verdict does not depend on the reports: where they cannot be written (a read-only artefact), a warning says so.
    """
    directory = find_run(options.runs_dir, options.run)
    outcome = judge_again(directory, configured_system(), read_plan(directory.path))
    outcome = replace(outcome, timings={**_timings_of_the_run(directory.path), **outcome.timings})
    tell(outcome, options)
    if options.json:
        print_json(verdict_document(outcome))
    try:
        write_reports(outcome)
    except OSError as error:
        print(f"stormproof: the reports in {directory.path} are not renewed: {error}", file=sys.stderr)
    return outcome.judgement.state.exit_code


def _timings_of_the_run(directory: Path) -> Mapping[str, float]:
    """Return what the run's own `verdict.json` says of its parts; nothing when it is missing or damaged."""
    try:
        timings = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))["timings"]
        return {str(part): float(seconds) for part, seconds in timings.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
