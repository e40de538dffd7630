"""A run's plan: everything that decides what will happen, written down before it does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from harness.errors import EvidenceDamagedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.environment.choice import BackendChoice
    from harness.planting import PlantedBug
    from harness.system_under_test import Experiment, SystemUnderTest

FILE_NAME = "plan.json"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be carried out. Two runs of one plan send the same requests and play the same faults.

    experiment: its name, `load:<profile>`, or `up`. requests_sha256: over all requests, empty when someone else
    makes them. program: the fault program's steps. mutant: path of a planted bug, None for the system as it is.
    backend_words: the command line's words that choose the backend and its variant, without secrets.
    """

    format: int = FORMAT
    system: str
    experiment: str
    seed: int
    backend: str
    rate_per_s: float
    duration_s: float
    requests_sha256: str
    program: list[dict[str, object]]
    mutant: str | None
    backend_words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise TypeError for what no plan of ours says: one that is read may have been changed by anybody."""
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}")

    def write(self, directory: Path) -> None:
        """Write `plan.json`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / FILE_NAME).write_text(text, encoding="utf-8")

    def ensure_of(self, system: SystemUnderTest) -> None:
        """Raise UsageError unless the plan is of this system: to another one's invariants its evidence says nothing."""
        if self.system != system.name:
            raise UsageError(
                f"this is a run of the system {self.system!r}, and {system.name!r} is configured here: "
                f"judge it where {self.system!r} is configured"
            )


_NUMBER = (int, float)
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "format": int,
    "system": str,
    "experiment": str,
    "seed": int,
    "backend": str,
    "rate_per_s": _NUMBER,
    "duration_s": _NUMBER,
    "requests_sha256": str,
    "program": list,
    "mutant": (str, type(None)),
    "backend_words": list,
}


def open_plan(
    system: SystemUnderTest,
    *,
    experiment: str,
    seed: int,
    choice: BackendChoice,
    rate_per_s: float = 0,
    duration_s: float = 0,
    bug: PlantedBug | None = None,
) -> Plan:
    """Return the plan of a run whose requests and faults somebody else decides: a test, Locust, a person."""
    return Plan(
        system=system.name,
        experiment=experiment,
        seed=seed,
        backend=choice.name,
        rate_per_s=rate_per_s,
        duration_s=duration_s,
        requests_sha256="",
        program=[],
        mutant=None if bug is None else str(bug.path),
        backend_words=choice.words(),
    )


def read_plan(directory: Path) -> Plan:
    """Read a run directory's plan. Raises EvidenceDamagedError when it is missing or torn."""
    path = directory / FILE_NAME
    try:
        plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise EvidenceDamagedError(f"{path} is missing or damaged ({error}): this run cannot be judged") from error
    if plan.format != FORMAT:
        raise EvidenceDamagedError(f"{path} has format {plan.format}, this version reads {FORMAT}")
    return plan


def digest_of_requests(system: SystemUnderTest, experiment: Experiment, seed: int) -> str:
    """Return the SHA-256 over every request the harness's own workload will send."""
    digest = hashlib.sha256()
    count = max(1, round(experiment.rate_per_s * experiment.duration_s))
    for request in islice(system.requests(seed, experiment.workload), count):
        digest.update(json.dumps(asdict(request), sort_keys=True).encode())
    return digest.hexdigest()
