"""The doctor's rounds: every part of the host is looked at, as many at once as do not lean on each other.

Promises: ends within the sum of three bounds (`examining.WITHIN_S`), whatever hangs; a part that breaks its look breaks
no other.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

from harness.doctor import containers, external, host, programs
from harness.doctor.ability import Ability
from harness.doctor.examining import examine
from harness.doctor.packages import package
from harness.doctor.report import POSTGRES_CLIENT, TLS_LIBRARY
from harness.environment.choice import BackendChoice
from harness.environment.toxiproxy.binary import BINARY_NAME, cached_binary

_TOLD = (
    host.PYTHON,
    host.USER,
    programs.NATS_SERVER,
    programs.OTHER_VERSIONS,
    programs.TOXIPROXY,
    programs.GO,
    programs.POSTGRESQL,
    POSTGRES_CLIENT,
    TLS_LIBRARY,
    programs.LOCUST,
    containers.ENGINE,
    containers.TESTCONTAINERS,
    *containers.IMAGES,
    containers.TRIAL,
    external.YOUR_BROKER,
    external.YOUR_TOXIPROXY,
    host.CACHE,
    host.TEMPORARY,
    host.RUNS,
    host.PORTS,
    host.GUARDIAN,
)


async def look_around(runs: Path, somebodys: BackendChoice | None) -> tuple[Ability, ...]:
    """Everything that runs are made of here, in the order it is told."""
    found = await _at_once(
        examine(host.PYTHON, host.python),
        examine(host.USER, host.user),
        examine(programs.NATS_SERVER, programs.nats_server),
        examine(programs.OTHER_VERSIONS, programs.other_nats_servers),
        examine(programs.GO, programs.go),
        examine(programs.POSTGRESQL, programs.postgresql),
        examine(POSTGRES_CLIENT, partial(package, POSTGRES_CLIENT, module="asyncpg", for_what="--postgres")),
        examine(TLS_LIBRARY, partial(package, TLS_LIBRARY, module="cryptography.x509", for_what="--tls")),
        examine(programs.LOCUST, programs.locust),
        examine(containers.ENGINE, containers.engine),
        examine(containers.TESTCONTAINERS, containers.testcontainers),
        examine(external.YOUR_BROKER, partial(external.broker, somebodys)),
        examine(external.YOUR_TOXIPROXY, partial(external.toxiproxy, somebodys)),
        examine(host.CACHE, partial(host.cache, must_build=_must_build())),
        examine(host.TEMPORARY, host.temporary),
        examine(host.RUNS, partial(host.runs, runs)),
        examine(host.PORTS, host.ports),
        examine(host.GUARDIAN, host.guardian),
    )
    go, cache, engine = found[programs.GO], found[host.CACHE], found[containers.ENGINE]
    found |= await _at_once(
        examine(programs.TOXIPROXY, partial(programs.toxiproxy, go, cache)),
        *(examine(name, partial(containers.image, name, engine)) for name in containers.IMAGES),
    )
    library, broker = found[containers.TESTCONTAINERS], found[containers.NATS_IMAGE]
    found |= await _at_once(examine(containers.TRIAL, partial(containers.trial, engine, library, broker)))
    return tuple(found[name] for name in _TOLD)


def _must_build() -> bool:
    return shutil.which(BINARY_NAME) is None and not cached_binary().exists()


async def _at_once(*looks: Coroutine[object, object, Ability]) -> dict[str, Ability]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(look) for look in looks]
    return {task.result().name: task.result() for task in tasks}
