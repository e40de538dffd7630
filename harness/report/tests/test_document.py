"""`verdict.json` tells each finding in words, and in fields where it has any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from harness.invariants.judgement import Judgement
from harness.invariants.verdict import VIOLATED, Finding, Verdict
from harness.report.document import verdict_document
from harness.report.tests.rows import plan
from harness.run import Outcome
from harness.runs import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A finding as ours are."""

    key: str
    lost: int

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key} lost {self.lost}"


class LostToo:
    """A stranger's finding: it keeps the protocol and no more."""

    key = "o1"

    def sentence(self) -> str:
        """Say it."""
        return "o1 lost 2"


@pytest.mark.parametrize(
    ("finding", "fields"),
    [(Lost(key="o1", lost=2), {"key": "o1", "lost": 2}), (LostToo(), {})],
    ids=["dataclass", "anything-else"],
)
def test_a_finding_stands_in_the_document_with_the_fields_it_has(
    tmp_path: Path, finding: Finding, fields: dict[str, object]
) -> None:
    """Its sentence is always there."""
    verdict = Verdict(invariant="X1", name="x", claim="x", state=VIOLATED, examined=1, reason="x", findings=(finding,))
    judgement = Judgement(
        verdicts=(verdict,), channels=(), faults=(), load=None, vacuous=(), outcomes={}, recovery_s=None
    )
    outcome = Outcome(plan=plan(), directory=RunDirectory(id="run-1", path=tmp_path), judgement=judgement, timings={})

    document = verdict_document(outcome)

    told = {"kind": type(finding).__name__, "key": "o1", "sentence": "o1 lost 2", "fields": fields}
    assert document["invariants"] == [
        {
            "id": "X1",
            "name": "x",
            "claim": "x",
            "verdict": "VIOLATED",
            "examined": 1,
            "reason": "x",
            "findings_total": 1,
            "findings": [told],
        }
    ]
