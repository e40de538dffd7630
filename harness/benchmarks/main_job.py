"""How long the main job takes: from the command to the first accepted order, and beyond the fault's own time.

    python -m harness.benchmarks.main_job [--runs 5] [--experiment NAME] [--json] [-- --backend cluster ...]

Each run is a fresh `stormproof run` in a process of its own, so interpreter start and imports count. Both figures come
from the run's evidence and the wall clock around the process; budgets are in ARCHITECTURE.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.evidence.store import FILE_NAME, Evidence
from harness.runs import LATEST

RUN_WITHIN_S = 120
_NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run. All in seconds.

    first_accepted_s: from the command to the first 202. total_s: the whole command. fault_s: sum of the fault windows.
    beyond_fault_s: total_s - fault_s.
    """

    verdict: str
    first_accepted_s: float
    total_s: float
    fault_s: float
    beyond_fault_s: float


def measure(experiment: str, runs: Path, *options: str) -> Figures:
    """Carry the experiment out once and measure it. options: of the command, `--backend cluster` for example."""
    began_ns = time.time_ns()
    command = [sys.executable, "-m", "harness", "run", experiment, "--json", "--runs-dir", str(runs), *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=RUN_WITHIN_S, check=False)  # noqa: S603 - our own command
    total_s = (time.time_ns() - began_ns) / _NS
    if not finished.stdout:
        raise SystemExit(f"`{' '.join(command)}` ended with {finished.returncode}: {finished.stderr.strip()[-500:]}")
    with Evidence.open(runs / LATEST / FILE_NAME) as evidence:
        first_ns = evidence.count("SELECT min(ended_ns) FROM operations WHERE outcome = 'ok'")
        fault_s = evidence.count("SELECT sum(healed_ns - began_ns) FROM faults") / _NS
    return Figures(
        verdict=json.loads(finished.stdout)["verdict"],
        first_accepted_s=round((first_ns - began_ns) / _NS, 3),
        total_s=round(total_s, 3),
        fault_s=round(fault_s, 3),
        beyond_fault_s=round(total_s - fault_s, 3),
    )


def main() -> None:
    """Measure and print every run, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--experiment", default="payments-partition")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("words", nargs="*", metavar="-- OPTION", help="options of `stormproof run`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stormproof-benchmark-") as directory:
        figures = [measure(options.experiment, Path(directory), *options.words) for _ in range(options.runs)]
    if options.json:
        print(json.dumps([asdict(each) for each in figures]))
        return
    print(f"{'verdict':<10}{'first accepted':>16}{'total':>10}{'fault':>10}{'beyond fault':>14}   (s)")
    for each in figures:
        print(
            f"{each.verdict:<10}{each.first_accepted_s:>16.2f}{each.total_s:>10.2f}{each.fault_s:>10.2f}{each.beyond_fault_s:>14.2f}"
        )
    first = statistics.median(each.first_accepted_s for each in figures)
    beyond = statistics.median(each.beyond_fault_s for each in figures)
    print(f"median: first accepted order after {first:.2f} s, {beyond:.2f} s beyond the fault's own time")


if __name__ == "__main__":
    main()
