"""A private file is private from its first byte, whatever was there before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harness.environment.private_files import write_private
from harness.errors import EnvironmentFailedError


def test_only_this_user_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    """The umask of whoever started the harness decides nothing."""
    path = tmp_path / "secret"
    before = os.umask(0)
    try:
        write_private(path, "open sesame")
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "open sesame"
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_file_that_everybody_could_read_is_replaced(tmp_path: Path) -> None:
    """Whoever had it open reads on in the old one."""
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)

    with path.open() as reader:
        write_private(path, "new")
        assert reader.read() == "old"

    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, "new")


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """It names the file, and not what was to be in it."""
    with pytest.raises(EnvironmentFailedError, match=r"cannot write .*/nowhere/secret: No such file"):
        write_private(tmp_path / "nowhere" / "secret", "open sesame")
