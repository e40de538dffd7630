"""Temporary files go where Python puts them, and looking where that is leaves nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from harness.environment.temporary import temporary_directory
from harness.errors import EnvironmentFailedError


@pytest.mark.parametrize(
    "variables", [{}, {"TMPDIR": "there"}, {"TMPDIR": "nowhere", "TEMP": "there"}, {"TMP": "file"}]
)
def test_it_is_what_python_would_choose(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the variables lead to."""
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(tempfile, "tempdir", None)

    chosen = temporary_directory()

    assert tempfile.tempdir is None, "nobody wrote a trial file"
    assert chosen == Path(tempfile.gettempdir())


def test_what_python_has_chosen_already_stays_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test, or an application, may have set it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", os.sep)

    assert temporary_directory() == tmp_path


def test_where_nothing_can_be_written_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names every place that was looked at."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(os, "access", lambda *_arguments: False)

    with pytest.raises(EnvironmentFailedError, match=r"is no directory.*set TMPDIR"):
        temporary_directory()
