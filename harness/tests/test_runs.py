"""A run directory's name is safe on any file system, whatever it was made from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from harness.runs import LATEST, new_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "what", ["payments-kill", "load:steady", "test_it[a/b]", "../../out", "test_it[\u202eäö \x00\n]", "test_it['$x']"]
)
def test_a_run_lies_in_the_runs_directory_and_is_the_latest(tmp_path: Path, what: str) -> None:
    """A test's id holds whatever its parameters hold; a slash in it is no directory."""
    runs = tmp_path / "runs"

    run = new_run(runs, what)

    assert re.fullmatch(r"[A-Za-z0-9._-]+", run.id)
    assert run.path == (runs / run.id).resolve()
    assert run.path.parent == runs.resolve()
    assert run.logs.is_dir()
    assert (runs / LATEST).resolve() == run.path
