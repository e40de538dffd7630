"""`stormproof check` tells the verdict whatever becomes of the reports, and keeps what the run knew of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from harness import cli
from harness.evidence.store import FILE_NAME as EVIDENCE
from harness.evidence.store import EvidenceWriter
from harness.report.document import FILE_NAME
from harness.report.tests.rows import asked, plan

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a saved run."""
    plan().write(tmp_path)
    writer = EvidenceWriter(tmp_path / EVIDENCE)
    writer.write([asked("o1", at_ms=0)])
    with writer.finish():
        return tmp_path


def test_the_timings_of_the_run_outlive_a_check(run: Path) -> None:
    """Only the judging is done anew, so only its time is."""
    (run / FILE_NAME).write_text('{"timings": {"start": 1.5, "drive": 5.25, "judge": 99}}', encoding="utf-8")

    assert cli.main(["check", str(run), "--json"]) == 2

    timings = json.loads((run / FILE_NAME).read_text(encoding="utf-8"))["timings"]
    assert list(timings) == ["start", "drive", "judge"]
    assert (timings["start"], timings["drive"]) == (1.5, 5.25)
    assert timings["judge"] < 99


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"timings": 7}', '{"timings": {"start": null}}'])
def test_a_missing_or_damaged_verdict_is_written_anew(run: Path, text: str | None) -> None:
    """There is nothing to keep."""
    if text is not None:
        (run / FILE_NAME).write_text(text, encoding="utf-8")

    assert cli.main(["check", str(run)]) == 2

    assert list(json.loads((run / FILE_NAME).read_text(encoding="utf-8"))["timings"]) == ["judge"]


def test_reports_that_cannot_be_written_do_not_cost_the_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory stands where the report should be; a read-only artefact is refused the same way."""
    (run / FILE_NAME).mkdir()

    assert cli.main(["check", str(run), "--json"]) == 2

    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "UNKNOWN"
    assert "are not renewed" in captured.err
    assert FILE_NAME in captured.err


def test_a_run_of_another_system_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its keys, messages and states mean something else, or nothing, to the invariants that are configured here."""
    replace(plan(), system="warehouse").write(tmp_path)

    assert cli.main(["check", str(tmp_path)]) == 64

    told = capsys.readouterr().err
    assert "a run of the system 'warehouse', and 'shop' is configured here" in told
