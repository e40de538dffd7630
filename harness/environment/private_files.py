"""Files that hold a secret: only this user can read them, from the first moment of their life.

Promises: mode 0600 before the first byte is in, also over an older file; replaced whole, so nobody reads half of one.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import EnvironmentFailedError


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else can read. Raises EnvironmentFailedError when it cannot be written."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        # O_EXCL: the mode counts only for a file that is made here.
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(text)
        unfinished.replace(path)
    except OSError as error:
        raise EnvironmentFailedError(f"cannot write {path}: {error.strerror}") from error
