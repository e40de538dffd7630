"""Where the `toxiproxy-server` binary comes from: PATH, the cache, or one build with Go.

Promises: a path that was just seen to answer `-version` as Toxiproxy 2.x; a build happens once per cache, however many
runs want it at once; a build that was killed leaves nothing that looks finished.

Does not: download binaries. No package registry carries the server (FACTS 1), so it is compiled from its source.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from harness.environment.bounded_command import run_bounded
from harness.environment.concurrency import shielded
from harness.environment.guardian import OWNER_VARIABLE
from harness.environment.ownership import Ownership
from harness.environment.toxiproxy_build import BUILD_WITHIN_S, PROGRESS_INTERVAL_S, VERSION, build_toxiproxy
from harness.errors import EnvironmentFailedError

CACHE_VARIABLE = "STORMPROOF_CACHE"
BINARY_NAME = "toxiproxy-server"
VERSION_WITHIN_S = 10.0
LOCK_INTERVAL_S = 0.1
UNFINISHED_PREFIX = "building-"

_VERSION = re.compile(r"version (2\.\d+\.\d+\S*)")


async def find_toxiproxy(progress: Callable[[str], None] = lambda _line: None) -> Path | None:
    """The binary when it can be had without building; None otherwise. What was found and refused is told."""
    on_path = shutil.which(BINARY_NAME)
    if on_path is not None:
        why_not = await why_not_toxiproxy(Path(on_path))
        if why_not is None:
            return Path(on_path)
        progress(f"{on_path} is not used: {why_not}")
    cached = cached_binary()
    if cached.exists():
        why_not = await why_not_toxiproxy(cached)
        if why_not is None:
            return cached
        progress(f"{cached} is broken and will be built anew: {why_not}")
    return None


async def find_or_build_toxiproxy(progress: Callable[[str], None] = lambda _line: None) -> Path:
    """The binary; builds it when there is none. The build has a guardian of its own, for it may run outside a run."""
    found = await find_toxiproxy(progress)
    if found is not None:
        return found
    binary = cached_binary()
    directory = binary.parent
    async with _build_lock(directory, progress):
        if binary.exists() and await why_not_toxiproxy(binary) is None:
            return binary  # somebody else built it while this run waited for the lock
        try:
            for unfinished in directory.glob(f"{UNFINISHED_PREFIX}*"):
                await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            workshop = directory / f"{UNFINISHED_PREFIX}{os.getpid()}"
            workshop.mkdir()
        except OSError as error:
            raise _cannot_write(directory, error) from error
        ownership = Ownership.take("toxiproxy-build")
        try:
            built = await build_toxiproxy(workshop, progress=progress, variables={OWNER_VARIABLE: ownership.label})
            why_not = await why_not_toxiproxy(built)
            if why_not is not None:
                raise EnvironmentFailedError(
                    f"Toxiproxy was built but does not run: {why_not}; if {directory} is mounted noexec, "
                    f"set {CACHE_VARIABLE} to another directory"
                )
            built.replace(binary)
        finally:
            await shielded(ownership.release())
            await shielded(asyncio.to_thread(shutil.rmtree, workshop, ignore_errors=True))
    progress(f"Toxiproxy {VERSION} is in {binary}")
    return binary


def cached_binary() -> Path:
    """Where the cache keeps it: `$STORMPROOF_CACHE`, else the user's cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        cache = Path(chosen).expanduser().absolute()
    else:
        from platformdirs import user_cache_path  # noqa: PLC0415 - start-up time, and not needed with the variable

        cache = user_cache_path("stormproof")
    return cache / f"toxiproxy-{VERSION}" / BINARY_NAME


async def why_not_toxiproxy(binary: Path) -> str | None:
    """None when this file runs and says that it is Toxiproxy 2.x, else what it did."""
    try:
        finished = await run_bounded(
            (str(binary), "-version"), environment={"PATH": os.defpath}, within_s=VERSION_WITHIN_S
        )
    except OSError as error:
        return f"it does not start ({error.strerror})"
    if finished.exit_code is None:
        return f"it did not answer -version within {VERSION_WITHIN_S:g} s"
    if finished.exit_code != 0 or _VERSION.search(finished.output) is None:
        return f"it answered -version with exit code {finished.exit_code} and {finished.output.strip()[:120]!r}"
    return None


@asynccontextmanager
async def _build_lock(directory: Path, progress: Callable[[str], None]) -> AsyncIterator[None]:
    # flock: the kernel lets go when a builder is killed, so nobody waits for the dead.
    try:
        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - once, on a local disk
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    began_s = told_s = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now_s = time.monotonic()
                if now_s - began_s > BUILD_WITHIN_S:
                    raise EnvironmentFailedError(
                        f"another process has been building Toxiproxy in {directory} for {BUILD_WITHIN_S:g} s; end it, "
                        f"or set {CACHE_VARIABLE} to another directory"
                    ) from None
                if now_s - told_s >= PROGRESS_INTERVAL_S:
                    told_s = now_s
                    progress(f"waiting for another process that builds Toxiproxy: {now_s - began_s:.0f} s")
            except OSError as error:
                raise _cannot_write(directory, error) from error
            await asyncio.sleep(LOCK_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)


def _cannot_write(directory: Path, error: OSError) -> EnvironmentFailedError:
    return EnvironmentFailedError(
        f"cannot write the cache directory {directory}: {error.strerror}; "
        f"set {CACHE_VARIABLE} to a directory that can be written, or put {BINARY_NAME} 2.x on PATH"
    )
