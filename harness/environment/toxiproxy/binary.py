"""Where the `toxiproxy-server` binary comes from: PATH, the cache, or one build with Go.

Promises: a path that was just seen to answer `-version` as Toxiproxy 2.x; a build happens once per cache, however many
runs want it at once; a build that was killed leaves nothing that looks finished.

Does not: download binaries. No package registry carries the server (FACTS 1), so it is compiled from its source.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.environment import cache
from harness.environment.cache import Recipe, Workshop, cache_directory, make_once
from harness.environment.processes.said_version import NoVersionError, ask_version
from harness.environment.toxiproxy.build import BUILD_WITHIN_S, VERSION, build_toxiproxy

CACHE_VARIABLE = cache.CACHE_VARIABLE
BINARY_NAME = "toxiproxy-server"

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
    """The binary; builds it when there is none."""
    found = await find_toxiproxy(progress)
    if found is not None:
        return found

    async def build(workshop: Workshop) -> Path:
        return await build_toxiproxy(workshop.directory, progress=progress, variables=workshop.variables)

    recipe = Recipe(
        what="builds Toxiproxy",
        within_s=BUILD_WITHIN_S,
        make=build,
        why_not=why_not_toxiproxy,
        otherwise=f"put {BINARY_NAME} 2.x on PATH",
    )
    binary = await make_once(cached_binary(), recipe, progress)
    progress(f"Toxiproxy {VERSION} is in {binary}")
    return binary


def cached_binary() -> Path:
    """Where the cache keeps it."""
    return cache_directory() / f"toxiproxy-{VERSION}" / BINARY_NAME


async def why_not_toxiproxy(binary: Path) -> str | None:
    """None when this file runs and says that it is Toxiproxy 2.x, else what it did."""
    try:
        await ask_version(binary, "-version", _VERSION)
    except NoVersionError as error:
        return str(error)
    return None
