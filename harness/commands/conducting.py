"""What `run`, `load`, `mutants` and `up` share: a run directory, the run, its reports."""

from __future__ import annotations

import json
import secrets
import sys
import time
from typing import TYPE_CHECKING

from harness.environment.choice import BackendChoice
from harness.errors import UsageError
from harness.report.document import verdict_document, write_document
from harness.run import carry_out
from harness.runs import new_run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from harness.plan import Plan
    from harness.planting import PlantedBug
    from harness.run import Outcome
    from harness.system_under_test import Drive, SystemUnderTest

_DRAWN_SEED_BITS = 31


def seed_of(options: argparse.Namespace) -> int:
    """Return the seed asked for, or draw one; the plan keeps it either way."""
    return secrets.randbits(_DRAWN_SEED_BITS) if options.seed is None else int(options.seed)


def choice_of(options: argparse.Namespace, system: SystemUnderTest) -> BackendChoice:
    """Return where the parts come from. Raises UsageError when that cannot be, or allows a fault that there is not."""
    faults = frozenset(options.allow_fault)
    known = {fault.name for fault in system.faults}
    if faults - known:
        raise UsageError(
            f"there is no fault {min(faults - known)!r} to allow; there is: {', '.join(sorted(known)) or 'none'}"
        )
    return BackendChoice(
        name=options.backend,
        nats_version=options.nats_version,
        postgres=options.postgres,
        tls=options.tls,
        nats_url=options.nats_url,
        toxiproxy_url=options.toxiproxy_url,
        allowed_faults=faults,
    )


def progress() -> Callable[[str], None]:
    """Return a printer of progress lines: seconds since now, on standard error."""
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.2f} s  {line}", file=sys.stderr, flush=True)

    return say


async def conduct(
    plan: Plan,
    system: SystemUnderTest,
    drive: Drive,
    options: argparse.Namespace,
    *,
    choice: BackendChoice,
    bug: PlantedBug | None = None,
    listen: Mapping[str, str] | None = None,
) -> Outcome:
    """Carry a plan out in a fresh run directory and write all its reports there."""
    directory = new_run(options.runs_dir, plan.experiment)
    say = progress()
    say(f"{plan.experiment}, seed {plan.seed}" + (f", planted bug {plan.mutant}" if plan.mutant else ""))
    outcome = await carry_out(plan, system, directory, drive, say=say, choice=choice, bug=bug, listen=listen)
    write_reports(outcome)
    return outcome


def write_reports(outcome: Outcome) -> None:
    """Write `verdict.json`, `junit.xml` and `report.html` beside the evidence."""
    # Reports are written when the run is over; their imports (Jinja2, DuckDB) must not delay its start (D9).
    from harness.evidence.store import FILE_NAME, Evidence  # noqa: PLC0415 - see above
    from harness.report.html import write_html  # noqa: PLC0415 - as above
    from harness.report.junit import write_junit  # noqa: PLC0415 - as above

    write_document(outcome.directory.path, verdict_document(outcome))
    write_junit(outcome)
    with Evidence.open(outcome.directory.path / FILE_NAME) as evidence:
        write_html(outcome, evidence)


def tell(outcome: Outcome, options: argparse.Namespace) -> None:
    """Print the report: on standard output, or with `--json` on standard error."""
    from harness.report.terminal import print_report  # noqa: PLC0415 - as in write_reports

    print_report(outcome, sys.stderr if options.json else sys.stdout)


def print_json(document: object) -> None:
    """Print the one JSON document of `--json`."""
    # A stranger's finding may hold what JSON does not know.
    print(json.dumps(document, default=str), flush=True)
