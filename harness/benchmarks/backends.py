"""What each backend costs: from the command to the first accepted order, and from one test to the next.

    python -m harness.benchmarks.backends [--runs 5] [--tests 20] [--backend NAME]... [--json]

The first figure is the median of so many fresh runs, each in a process of its own (`main_job`). The others are of the
pytest fixtures: how long the first test waits for a broker of its own and proxies, and how long every later one, which
is handed the same ones as new (`reset` says what that is made of). Ends with 1 when a budget is not kept; they are in
ARCHITECTURE.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from harness.benchmarks.main_job import measure
from harness.environment.choice import CLUSTER, CLUSTER_CONTAINER, CONTAINER, EMBEDDED

EXPERIMENT = "payments-partition"
FIRST_ACCEPTED_BUDGETS_S = {EMBEDDED: 1.5, CONTAINER: 5.0, CLUSTER: 4.0, CLUSTER_CONTAINER: None}
RESET_BUDGET_S = 0.1
TESTS_WITHIN_S = 300

_FIXTURES = {False: "jetstream, toxiproxy", True: "nats_cluster, jetstream, toxiproxy"}
_TEST = """
import pytest

@pytest.mark.parametrize("number", range({count}))
async def test_empty(number, {fixtures}):
    pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One backend. All in seconds.

    first_accepted_s: from the command to the first 202, of each run. first_test_s: until a test has its parts, and they
    are its alone. reset_s: the same for a later test, median.
    """

    backend: str
    first_accepted_s: tuple[float, ...]
    first_test_s: float
    reset_s: float

    @property
    def median_s(self) -> float:
        """Of the first figure."""
        return statistics.median(self.first_accepted_s)

    @property
    def is_kept(self) -> bool:
        """Whether its budgets are."""
        budget_s = FIRST_ACCEPTED_BUDGETS_S[self.backend]
        return (budget_s is None or self.median_s < budget_s) and self.reset_s < RESET_BUDGET_S


def figures_of(backend: str, *, runs: int, tests: int) -> Figures:
    """Measure one backend."""
    with tempfile.TemporaryDirectory(prefix="stormproof-benchmark-") as name:
        directory = Path(name)
        firsts = [measure(EXPERIMENT, directory / "runs", "--backend", backend).first_accepted_s for _ in range(runs)]
        first_test_s, *later_s = _durations(backend, tests, directory)
    return Figures(
        backend=backend,
        first_accepted_s=tuple(firsts),
        first_test_s=first_test_s,
        reset_s=round(statistics.median(later_s), 4),
    )


def _durations(backend: str, count: int, directory: Path) -> list[float]:
    """How long each of so many empty tests takes, its fixtures included, as pytest says."""
    test, report = directory / "test_empty.py", directory / "junit.xml"
    fixtures = _FIXTURES[backend in (CLUSTER, CLUSTER_CONTAINER)]
    test.write_text(_TEST.format(count=count, fixtures=fixtures), encoding="utf-8")
    words = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "--rootdir", str(directory)]
    finished = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "pytest", *words, "--backend", backend, f"--junitxml={report}", str(test)],
        capture_output=True,
        text=True,
        timeout=TESTS_WITHIN_S,
        check=False,
        cwd=directory,
    )
    if finished.returncode != 0:
        raise SystemExit(f"the empty tests ended with {finished.returncode}: {finished.stdout.strip()[-2000:]}")
    return [float(case.attrib["time"]) for case in ET.parse(report).iter("testcase")]  # noqa: S314 - pytest's own report


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--backend", choices=tuple(FIRST_ACCEPTED_BUDGETS_S), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = [
        figures_of(backend, runs=options.runs, tests=options.tests)
        for backend in options.backend or FIRST_ACCEPTED_BUDGETS_S
    ]
    if options.json:
        print(json.dumps([{**asdict(each), "median_s": each.median_s, "is_kept": each.is_kept} for each in measured]))
    else:
        _print(measured)
    return 0 if all(each.is_kept for each in measured) else 1


def _print(measured: Sequence[Figures]) -> None:
    print(
        f"{'backend':<20}{'first accepted':>16}{'least':>8}{'most':>8}{'budget':>9}{'first test':>12}{'next test':>11}"
    )
    for each in measured:
        budget_s = FIRST_ACCEPTED_BUDGETS_S[each.backend]
        budget = "" if budget_s is None else f"< {budget_s:g} s"
        least, most = min(each.first_accepted_s), max(each.first_accepted_s)
        print(
            f"{each.backend:<20}{each.median_s:>14.2f} s{least:>8.2f}{most:>8.2f}{budget:>9}"
            f"{each.first_test_s:>10.2f} s{each.reset_s * 1000:>8.0f} ms{'' if each.is_kept else '   over budget'}"
        )


if __name__ == "__main__":
    sys.exit(main())
