"""Run directories: made, named, found again.

`runs/<time>-<experiment>-<random>/` holds one run; `runs/latest` points at the newest. `RUN` on the command line is
such a directory, or `latest`.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from harness import plan
from harness.errors import EnvironmentFailedError, UsageError

DEFAULT_DIRECTORY = "runs"
LATEST = "latest"
_ODD = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDirectory:
    """One run's directory. id: unique on this machine; its name."""

    id: str
    path: Path

    @property
    def logs(self) -> Path:
        """Logs of every process, one file each."""
        return self.path / "logs"


def new_run(runs: Path, what: str) -> RunDirectory:
    """Make a fresh run directory and point `latest` at it.

    Raises EnvironmentFailedError when the place cannot be written.
    """
    # `what` may be a test's id, with whatever its parameters hold: a slash would lead to another directory.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{_ODD.sub('-', what)}-{secrets.token_hex(3)}"
    path = runs / name
    try:
        (path / "logs").mkdir(parents=True)
        pointer = runs / f".{LATEST}-{name}"
        pointer.symlink_to(name, target_is_directory=True)
        pointer.replace(runs / LATEST)
    except OSError as error:
        raise EnvironmentFailedError(
            f"no run directory can be made at {path} ({error.strerror}): choose another with --runs-dir"
        ) from error
    return RunDirectory(id=name, path=path.resolve())


def find_run(runs: Path, name: str) -> RunDirectory:
    """Return the run that `RUN` means. Raises UsageError when it is not a run directory."""
    path = runs / LATEST if name == LATEST else Path(name)
    if not path.is_dir() and (runs / name).is_dir():
        path = runs / name
    if not path.is_dir():
        hint = f"there is no run in {os.fspath(runs)!r} yet" if name == LATEST else f"no directory {name!r}"
        raise UsageError(f"{hint}: give a run directory, or `{LATEST}` after a run")
    if not (path / plan.FILE_NAME).is_file():
        raise UsageError(f"{os.fspath(path)!r} is not a run directory: it holds no {plan.FILE_NAME}")
    return RunDirectory(id=path.resolve().name, path=path.resolve())
