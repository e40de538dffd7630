"""The instrument, tested by what it finds: each planted bug is named by its invariant, and by no other."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import jsonschema
import pytest

from harness.planting import read_bugs
from scenarios.command import ROOT, document, rows, stormproof
from scenarios.shop import SHOP

if TYPE_CHECKING:
    from pathlib import Path

    from harness.planting import PlantedBug

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")

SCHEMA = json.loads((ROOT / "harness" / "report" / "schemas" / "mutants.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("bug", read_bugs(SHOP.planted_bugs), ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught_by_the_invariant_that_names_it(bug: PlantedBug, tmp_path: Path) -> None:
    """From a directory of its own, as a user's bugs are."""
    shutil.copy(bug.path, tmp_path / bug.path.name)

    finished = stormproof("mutants", "--from", str(tmp_path), "--json", "--runs-dir", str(tmp_path / "runs"))

    matrix = document(finished)
    jsonschema.validate(matrix, SCHEMA)
    assert finished.returncode == 0, finished.stderr
    (kill,) = rows(matrix, "mutants")
    assert (kill["result"], kill["violated"], kill["unrelated"]) == ("caught", list(bug.expected), []), finished.stderr
    assert matrix["score"] == 1


def test_a_bug_that_does_no_harm_is_missed(tmp_path: Path) -> None:
    """A kill matrix that cannot show a miss would be worthless."""
    (tmp_path / "harmless.py").write_text(
        '"""Does nothing at all."""\n\nTARGET = "payments"\nEXPERIMENT = "payments-kill"\nEXPECTED = ("I2",)\n\n\n'
        'def plant() -> None:\n    """Leave everything as it is."""\n',
        encoding="utf-8",
    )

    finished = stormproof("mutants", "--from", str(tmp_path), "--json", "--runs-dir", str(tmp_path / "runs"))

    matrix = document(finished)
    assert finished.returncode == 1
    assert [kill["result"] for kill in rows(matrix, "mutants")] == ["missed"]
    assert matrix["score"] == 0


def test_a_bug_that_breaks_its_process_at_the_start_is_unknown_not_caught(tmp_path: Path) -> None:
    """Nothing was tested, and the row says why; the other rows are not lost with it."""
    (tmp_path / "broken.py").write_text(
        '"""Cannot even start."""\n\nTARGET = "payments"\nEXPERIMENT = "payments-kill"\nEXPECTED = ("I2",)\n\n\n'
        'def plant() -> None:\n    """Fail."""\n    raise RuntimeError("planted with a broken spade")\n',
        encoding="utf-8",
    )

    finished = stormproof("mutants", "--from", str(tmp_path), "--json", "--runs-dir", str(tmp_path / "runs"))

    matrix = document(finished)
    jsonschema.validate(matrix, SCHEMA)
    assert finished.returncode == 2
    (kill,) = rows(matrix, "mutants")
    assert (kill["result"], kill["run"]) == ("unknown", "")
    assert "planted with a broken spade" in str(kill["why"])
