"""An experiment: steady load, and a fault program drawn from the run's seed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

from chaos.program import FaultProgram
from harness import cli
from harness.errors import PlanError
from harness.system_under_test import DEFAULT_WORKLOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Load, and harm meanwhile. It knows roles and links, not what the operations mean.

    rate_per_s: operations a second, open loop. duration_s: how long they are placed. workload: what customers do.
    draw: makes the fault program from a random source; all randomness of the program comes from it. backends: the only
    ones it can be carried out on; empty for all.
    """

    name: str
    summary: str
    rate_per_s: float
    duration_s: float
    draw: Callable[[random.Random], FaultProgram]
    workload: str = DEFAULT_WORKLOAD
    backends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0 or self.duration_s <= 0:
            raise PlanError(f"experiment {self.name!r}: rate_per_s and duration_s must be above 0")

    def program(self, seed: int) -> FaultProgram:
        """Return the fault program for this seed; the same seed gives the same one."""
        return self.draw(random.Random(f"{self.name}:{seed}"))  # noqa: S311 - reproducible chance, not a secret


def run_script(experiment: Experiment) -> None:
    """Carry an experiment out as a script: the same as `stormproof run NAME` with the same options."""
    sys.exit(cli.main(["run", experiment.name, *sys.argv[1:]]))
