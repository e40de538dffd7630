"""An initialised data directory of PostgreSQL: made once in the cache, copied for each run.

Promises: `initdb` runs once per version and machine (0.5-0.7 s; a copy takes 0.1-0.2); a copy belongs to whoever will
run the server; passwords are asked for from the first start on, and page checksums are on.

Does not: sync the copy to disk. A killed server loses nothing by that; a power cut during a run could.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.environment.cache import Recipe, Workshop, cache_directory, make_once
from harness.environment.postgres.binary import PostgresInstallation
from harness.environment.private_files import write_private
from harness.environment.processes.bounded_command import run_bounded
from harness.environment.processes.servant import hand_over, kept
from harness.errors import EnvironmentFailedError

SUPERUSER = "stormproof"
INITDB_WITHIN_S = 120.0
PASSWORD_BYTES = 24
_DATA = "data"
_PASSWORD = "password"  # noqa: S105 - the name of the file
INITDB_OPTIONS = (
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--data-checksums",
    f"--username={SUPERUSER}",
)


async def copy_template(
    installation: PostgresInstallation, data: Path, *, progress: Callable[[str], None] = lambda _line: None
) -> str:
    """Make `data` a fresh data directory; returns the superuser's password in it, which others' copies share.

    data: is replaced; the servant may enter its parent.
    """
    words = f"{installation.words} {platform.machine()} {INITDB_OPTIONS}"
    key = f"postgres-{installation.version}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    template = cache_directory() / key / "template"
    if await _why_not_template(template) is not None:

        async def make(workshop: Workshop) -> Path:
            return await _initialise(installation, workshop, beside=data)

        progress(f"initialising PostgreSQL {installation.version} (once)")
        recipe = Recipe(
            what=f"initialises PostgreSQL {installation.version}",
            within_s=INITDB_WITHIN_S,
            make=make,
            why_not=_why_not_template,
            otherwise="run without PostgreSQL",
        )
        await make_once(template, recipe, progress)
    try:
        await asyncio.to_thread(_copy, template / _DATA, data)
        return (template / _PASSWORD).read_text()
    except (OSError, shutil.Error) as error:
        raise EnvironmentFailedError(f"cannot copy {template} to {data}: {error}; free some space") from error


async def _initialise(installation: PostgresInstallation, workshop: Workshop, *, beside: Path) -> Path:
    # Beside the run's own data, because the servant may not be able to enter the cache.
    made, finished = workshop.directory / "template", beside.with_name(f"{beside.name}-template")
    made.mkdir(mode=0o700)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    write_private(made / _PASSWORD, password)
    handed = beside.with_name(f"{beside.name}-password")
    write_private(handed, password)
    finished.mkdir(mode=0o700)
    hand_over(handed, finished)
    initdb = (
        str(installation.directory / "initdb"),
        "-D",
        str(finished),
        f"--pwfile={handed}",
        "--no-sync",
        *INITDB_OPTIONS,
    )
    try:
        ended = await run_bounded(
            kept(initdb, pid_file=finished / "postmaster.pid"),
            environment={"PATH": os.defpath, "TZ": "UTC", **workshop.variables},
            within_s=INITDB_WITHIN_S,
            directory=beside.parent,
        )
        if ended.exit_code != 0:
            how = "took too long" if ended.exit_code is None else f"failed ({ended.exit_code})"
            raise EnvironmentFailedError(
                f"initialising PostgreSQL {installation.version} from {installation.directory} {how}; "
                f"free some space, or try another installation. It said:\n{ended.tail()}"
            )
        await asyncio.to_thread(shutil.copytree, finished, made / _DATA)
    finally:
        handed.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, finished, ignore_errors=True)
    return made


async def _why_not_template(template: Path) -> str | None:
    names = (_PASSWORD, f"{_DATA}/PG_VERSION", f"{_DATA}/global/pg_control", f"{_DATA}/postgresql.conf")
    missing = [name for name in names if not (template / name).is_file()]
    return f"{missing[0]} is missing" if missing else None


def _copy(template: Path, data: Path) -> None:
    shutil.rmtree(data, ignore_errors=True)  # half of a copy for which there was no space
    # Without the times and modes of files, which cost as much as their content; the directories keep theirs.
    shutil.copytree(template, data, copy_function=shutil.copyfile)
    hand_over(data, *data.rglob("*"))
