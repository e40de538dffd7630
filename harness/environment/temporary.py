"""Where temporary files go, found without making one.

`tempfile.gettempdir` writes a trial file into each candidate, and SIGKILL in that moment leaves it there for good.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness.errors import EnvironmentFailedError

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
_USUAL = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108 - as `tempfile` itself looks, in this order


def temporary_directory() -> Path:
    """The directory that `tempfile` would choose. Raises EnvironmentFailedError when there is none."""
    if tempfile.tempdir is not None:
        return Path(os.fsdecode(tempfile.tempdir))
    candidates = [os.environ.get(name, "") for name in _VARIABLES] + [*_USUAL, str(Path.cwd())]
    for candidate in filter(None, candidates):
        if Path(candidate).is_dir() and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate).absolute()
    raise EnvironmentFailedError(
        f"there is no directory for temporary files: none of {', '.join(filter(None, candidates))} can be written; "
        "set TMPDIR"
    )
