"""Packages of Python that something here needs, and the commands that bring them.

Promises: a package is said to work when a fresh interpreter has imported it; the command to install it is for the
installer that stands beside this Python, and asks for the version that this project declares.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from importlib import metadata

from harness.doctor.ability import Ability, broken, works
from harness.environment.processes.bounded_command import run_bounded
from harness.environment.wheels import has_pip

OURS = "stormproof"
IMPORT_WITHIN_S = 15.0

_NAME = re.compile(r"[A-Za-z0-9._-]+")


async def package(distribution: str, *, module: str, for_what: str) -> Ability:
    """Whether a package can be imported. for_what: completes "needed for"."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return broken(distribution, f"not installed; needed for {for_what}", install(distribution))
    # In a process of its own: it may take a second, patch its interpreter, or take it down.
    finished = await run_bounded(
        (sys.executable, "-c", f"import {module}"), environment=os.environ, within_s=IMPORT_WITHIN_S
    )
    if finished.exit_code == 0:
        return works(distribution, f"for {for_what}", version=version)
    how = "took too long" if finished.exit_code is None else f"ended with {finished.exit_code}"
    return broken(
        distribution,
        f"{version} is installed, and importing it {how}: {finished.tail(1).strip()}; needed for {for_what}",
        install(distribution, again=True),
    )


def install(distribution: str, *, again: bool = False) -> str:
    """The command that installs what this project declares of a package."""
    wanted = shlex.quote(_declared(distribution))
    python = shlex.quote(sys.executable)
    if not has_pip() and shutil.which("uv") is not None:
        return f"uv pip install --python {python} {'--reinstall ' * again}{wanted}"
    return f"{python} -m pip install {'--force-reinstall ' * again}{wanted}"


def installer() -> str | None:
    """What brings packages here, pip or uv; None where there is neither."""
    if has_pip():
        return "pip"
    return "uv" if shutil.which("uv") is not None else None


def _declared(distribution: str) -> str:
    try:
        declared = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        declared = []
    for each in declared:
        requirement = each.partition(";")[0].strip()
        name = _NAME.match(requirement)
        if name is not None and name[0].lower() == distribution.lower():
            return requirement
    return distribution
