"""The cache that outlives runs: what is slow to make is made there once, however many runs want it at once.

Promises: a thing stands under its name complete or not at all, also after SIGKILL or a power cut in the middle; whoever
comes second waits for the first; every process of the work ends with the harness, for it has a guardian of its own.

Does not: know what is made (`toxiproxy.binary`, `nats.versions`, `postgres.template`), and never empties itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.environment.concurrency import shielded
from harness.environment.processes.guardian import OWNER_VARIABLE
from harness.environment.processes.ownership import Ownership
from harness.errors import EnvironmentFailedError

CACHE_VARIABLE = "STORMPROOF_CACHE"
LOCK_NAME = "lock"
LOCK_INTERVAL_S = 0.1
PROGRESS_INTERVAL_S = 5.0
UNFINISHED_PREFIX = "building-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where something is made.

    directory: empty, beside the place where the result goes, removed afterwards. variables: the owner label, which
    every process of the work must carry.
    """

    directory: Path
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One thing of the cache, and how it is made.

    what: completes "waiting for another process that ...": `builds Toxiproxy`. within_s: how long that may take.
    make: returns the finished file or directory, inside the workshop. why_not: None when a path is good as it is.
    otherwise: what to do when the cache cannot be written, beside choosing another one.
    """

    what: str
    within_s: float
    make: Callable[[Workshop], Awaitable[Path]]
    why_not: Callable[[Path], Awaitable[str | None]]
    otherwise: str


def cache_directory() -> Path:
    """`$STORMPROOF_CACHE`, else the user's cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path  # noqa: PLC0415 - start-up time, and not needed with the variable

    return user_cache_path("stormproof")


async def make_once(place: Path, recipe: Recipe, progress: Callable[[str], None]) -> Path:
    """Make the thing unless somebody else just has; returns `place`. Raises EnvironmentFailedError."""
    directory = place.parent
    try:
        async with _lock(directory, recipe, progress):
            if await recipe.why_not(place) is None:
                return place  # made while this run waited for the lock
            for unfinished in directory.glob(f"{UNFINISHED_PREFIX}*"):
                await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            await _make(place, recipe)
    except OSError as error:
        raise EnvironmentFailedError(
            f"cannot write the cache directory {directory}: {error.strerror or error}; set {CACHE_VARIABLE} to a "
            f"directory that can be written and has space, or {recipe.otherwise}"
        ) from error
    return place


async def _make(place: Path, recipe: Recipe) -> None:
    workshop = place.parent / f"{UNFINISHED_PREFIX}{os.getpid()}"
    workshop.mkdir(mode=0o700)
    try:
        ownership = Ownership.take(place.parent.name)
        try:
            made = await recipe.make(Workshop(directory=workshop, variables={OWNER_VARIABLE: ownership.label}))
            why_not = await recipe.why_not(made)
            if why_not is not None:
                raise EnvironmentFailedError(
                    f"{place.name} was made for {place.parent} but is of no use: {why_not}; if that directory is "
                    f"mounted noexec, set {CACHE_VARIABLE} to another one, or {recipe.otherwise}"
                )
            await asyncio.to_thread(_put, made, place)
        finally:
            await shielded(ownership.release())
    finally:
        await shielded(asyncio.to_thread(shutil.rmtree, workshop, ignore_errors=True))


def _put(made: Path, place: Path) -> None:
    # Synced first: a power cut must not leave the final name on a file whose content never reached the disk.
    for path in (made, *made.rglob("*")) if made.is_dir() else (made,):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if place.is_dir():
        shutil.rmtree(place)  # a broken one; a directory cannot be replaced in one step
    made.replace(place)


@asynccontextmanager
async def _lock(directory: Path, recipe: Recipe, progress: Callable[[str], None]) -> AsyncIterator[None]:
    # flock: the kernel lets go when a builder is killed, so nobody waits for the dead.
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - once, on a local disk
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    began_s = told_s = time.monotonic()
    try:
        while not _is_locked(descriptor):
            now_s = time.monotonic()
            if now_s - began_s > recipe.within_s:
                raise EnvironmentFailedError(
                    f"waited {recipe.within_s:g} s for another process that {recipe.what} in {directory}; end it, or "
                    f"set {CACHE_VARIABLE} to another directory"
                )
            if now_s - told_s >= PROGRESS_INTERVAL_S:
                told_s = now_s
                progress(f"waiting for another process that {recipe.what}: {now_s - began_s:.0f} s")
            await asyncio.sleep(LOCK_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
