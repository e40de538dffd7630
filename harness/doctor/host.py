"""What runs ask of this host itself: room, ports, and the means to end everything they start.

Promises: directories are written to, ports are leased, a guardian is started and ends a process; nothing of it is left,
also when the doctor is killed meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.doctor.ability import Ability, broken, works
from harness.doctor.examining import in_thread
from harness.environment.cache import CACHE_VARIABLE, cache_directory
from harness.environment.concurrency import shielded
from harness.environment.ports import FIRST_PORT, LAST_PORT, PortLease
from harness.environment.processes.exit_watch import ExitWatch
from harness.environment.processes.guardian import OWNER_VARIABLE, has_proc
from harness.environment.processes.ownership import Ownership
from harness.environment.temporary import temporary_directory
from harness.errors import EnvironmentFailedError

PYTHON = "python"
USER = "user"
CACHE = "cache directory"
TEMPORARY = "temporary directory"
RUNS = "runs directory"
PORTS = "ports"
GUARDIAN = "guardian"

FREE_MIN_MB = 100
FREE_TO_BUILD_MB = 1_000
FREE_FOR_LOAD_MB = 1_000
PORTS_OF_A_RUN = 48
"""What the shipped system takes in a cluster: processes, servers, and a proxy on every link to each of them."""

ENDED_WITHIN_S = 5.0
MEGABYTE = 1_000_000


async def python() -> Ability:
    """The interpreter."""
    return works(PYTHON, sys.executable, version=".".join(map(str, sys.version_info[:3])))


async def user() -> Ability:
    """Who runs this, and what follows from it."""
    if os.geteuid() == 0:
        return works(USER, "root: PostgreSQL, which refuses root, runs as nobody")
    return works(USER, "not root, which nothing here needs")


async def cache(*, must_build: bool) -> Ability:
    """Where what is slow to make is kept. must_build: whether Toxiproxy is still to be built there."""
    needed_mb = FREE_TO_BUILD_MB if must_build else FREE_MIN_MB
    elsewhere = f"export {CACHE_VARIABLE}=/a/directory/with/space"
    return await in_thread(lambda: _directory(CACHE, cache_directory(), needed_mb, elsewhere, must_execute=True))


async def temporary() -> Ability:
    """Where the stores and sockets of a run lie while it lasts."""
    directory = temporary_directory()
    return await in_thread(
        lambda: _directory(
            TEMPORARY, directory, FREE_MIN_MB, "export TMPDIR=/a/directory/with/space", must_execute=False
        )
    )


async def runs(directory: Path) -> Ability:
    """Where the evidence goes."""
    return await in_thread(
        lambda: _directory(
            RUNS, directory.absolute(), FREE_MIN_MB, "choose another with --runs-dir", must_execute=False
        )
    )


async def ports() -> Ability:
    """Loopback ports for a run of the largest kind, leased and given back."""
    with PortLease() as lease:
        taken = await in_thread(lambda: lease.take(PORTS_OF_A_RUN))
    return works(PORTS, f"{len(taken)} between {FIRST_PORT} and {LAST_PORT} leased and given back")


async def guardian() -> Ability:
    """Whether a run's belongings would vanish with it: a labelled process and a scratch directory are made, and go."""
    began_s = time.monotonic()
    ownership = Ownership.take("doctor")
    try:
        child = subprocess.Popen(  # noqa: ASYNC220 - starting takes 2 ms; our own interpreter
            [sys.executable, "-S", "-c", "import signal; signal.pause()"],
            env={**os.environ, OWNER_VARIABLE: ownership.label},
        )
    except OSError as error:
        raise EnvironmentFailedError(f"cannot start a process: {error.strerror}; free memory or processes") from error
    finally:
        await shielded(ownership.release())
    if await ExitWatch(child).wait(ENDED_WITHIN_S) != -signal.SIGKILL:
        child.kill()
        child.wait()
        return broken(
            GUARDIAN,
            "a process with a run's label outlived its run",
            "please report this line" if has_proc() else "mount -t proc proc /proc",
        )
    seconds = time.monotonic() - began_s
    return works(GUARDIAN, f"ended a process and removed a directory in {seconds:.2f} s", seconds=seconds)


def _directory(name: str, directory: Path, needed_mb: int, elsewhere: str, *, must_execute: bool) -> Ability:
    # Made with the first run; until then what holds for its parent holds for it.
    place = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # without a name where the kernel can: nothing of it is left
            file.write(b"stormproof")
        room = os.statvfs(place)
    except OSError as error:
        return broken(name, f"{place} cannot be written ({error.strerror})", elsewhere)
    if must_execute and room.f_flag & os.ST_NOEXEC:
        return broken(name, f"{directory} is mounted noexec: no program runs from there", elsewhere)
    free_mb = room.f_bavail * room.f_frsize // MEGABYTE
    free = f"{directory}, {free_mb / 1000:.1f} GB free"
    if free_mb < needed_mb:
        return broken(name, f"{free}, and {needed_mb / 1000:g} GB are needed", elsewhere)
    return works(name, free if free_mb >= FREE_FOR_LOAD_MB else f"{free}: little for a long load")
