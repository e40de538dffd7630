"""Fetches one package from the index with the installer that stands beside this Python: pip, else uv.

Promises: nothing is installed into this environment; every process of it ends with the call.

Does not: cache (`cache`) or know what the package is for.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.environment.cache import PROGRESS_INTERVAL_S
from harness.environment.processes.bounded_command import Finished, run_bounded
from harness.errors import EnvironmentFailedError

INSTALL_WITHIN_S = 600.0

# A user's pins are for a user's environment; the other two cannot be combined with a target of our own.
_NOT_PASSED_ON = ("PIP_CONSTRAINT", "PIP_USER", "PIP_TARGET", "UV_CONSTRAINT")

# An index that is not there is known after seconds, not after pip's five patient retries.
_PIP = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--retries", "1", "--timeout", "15")


def has_pip() -> bool:
    """Whether this Python has pip."""
    return importlib.util.find_spec("pip") is not None


def wheel_installer(search_path: str | None) -> tuple[str, ...] | None:
    """How an install command begins here; None where there is neither pip nor uv. search_path: the value of `$PATH`."""
    if has_pip():
        return (*_PIP, "install", "--no-cache-dir")
    uv = shutil.which("uv", path=search_path)
    return None if uv is None else (uv, "pip", "install", "--no-cache", "--python", sys.executable)


async def fetch_wheel(
    requirement: str,
    target: Path,
    *,
    installer: tuple[str, ...],
    environment: Mapping[str, str],
    progress: Callable[[str], None],
) -> Finished:
    """Unpack the one wheel of a requirement into `target`, without what it depends on; the caller judges the exit code.

    target: a new directory; temporary files lie beside it. environment: all variables, the owner label among them.
    """
    return await _run(
        (*installer, "--no-deps", "--only-binary", ":all:", "--target", str(target), requirement),
        what=f"fetching {requirement}",
        environment={
            **environment,
            "TMPDIR": str(target.parent),
        },  # what a killed installer leaves goes with its parent
        directory=target.parent,
        progress=progress,
    )


async def ask_index(package: str, *, environment: Mapping[str, str]) -> Finished:
    """What pip says of the published versions of a package; needs pip. environment: as above."""
    return await _run(
        (*_PIP, "index", "versions", package),
        what=f"asking for the versions of {package}",
        environment=environment,
        directory=None,
        progress=lambda _line: None,
    )


async def _run(
    argv: tuple[str, ...],
    *,
    what: str,
    environment: Mapping[str, str],
    directory: Path | None,
    progress: Callable[[str], None],
) -> Finished:
    try:
        return await run_bounded(
            argv,
            environment={name: value for name, value in environment.items() if name not in _NOT_PASSED_ON},
            within_s=INSTALL_WITHIN_S,
            directory=directory,
            every_s=PROGRESS_INTERVAL_S,
            on_wait=lambda elapsed_s: progress(f"still {what}: {elapsed_s:.0f} s"),
        )
    except OSError as error:
        raise EnvironmentFailedError(f"{what} failed: {argv[0]} does not start ({error.strerror})") from error
