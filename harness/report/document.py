"""`verdict.json`: a judged run as one JSON document.

Others build on it, so it is a contract (`schemas/verdict.schema.json`): fields may join, none leaves.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from harness.invariants.verdict import Finding, Verdict
    from harness.run import Outcome

SCHEMA = "stormproof.verdict/1"
FILE_NAME = "verdict.json"
FINDINGS_MAX = 100
"""At most so many findings of one invariant stand in the document; `findings_total` says how many there are."""


def verdict_document(outcome: Outcome) -> dict[str, object]:
    """Return the document."""
    judgement = outcome.judgement
    return {
        "schema": SCHEMA,
        "run": str(outcome.directory.path),
        "experiment": outcome.plan.experiment,
        "seed": outcome.plan.seed,
        "backend": outcome.plan.backend,
        "mutant": outcome.plan.mutant,
        "verdict": judgement.state.value,
        "exit_code": judgement.state.exit_code,
        "vacuous": list(judgement.vacuous),
        "operations": {name: judgement.outcomes.get(name, 0) for name in ("ok", "failed", "unknown")},
        "invariants": [_invariant(verdict) for verdict in judgement.verdicts],
        "channels": [asdict(channel) for channel in judgement.channels],
        "faults": [asdict(window) for window in judgement.faults],
        "load": None if judgement.load is None else asdict(judgement.load),
        "recovery_s": judgement.recovery_s,
        "timings": dict(outcome.timings),
    }


def write_document(directory: Path, document: dict[str, object]) -> None:
    """Write `verdict.json`."""
    unfinished = directory / f".{FILE_NAME}"
    unfinished.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
    unfinished.replace(directory / FILE_NAME)  # a full disk must not take the verdict there was


def _invariant(verdict: Verdict) -> dict[str, object]:
    return {
        "id": verdict.invariant,
        "name": verdict.name,
        "claim": verdict.claim,
        "verdict": verdict.state.value,
        "examined": verdict.examined,
        "reason": verdict.reason,
        "findings_total": len(verdict.findings),
        "findings": [_finding(finding) for finding in verdict.findings[:FINDINGS_MAX]],
    }


def _finding(finding: Finding) -> dict[str, object]:
    kind = type(finding).__name__
    return {"kind": kind, "key": finding.key, "sentence": finding.sentence(), "fields": _fields(finding)}


def _fields(finding: object) -> dict[str, object]:
    """Return what a finding holds; nothing when a stranger's finding is no dataclass, its sentence tells it anyway."""
    return asdict(finding) if is_dataclass(finding) and not isinstance(finding, type) else {}
