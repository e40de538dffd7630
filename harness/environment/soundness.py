"""Tells a broken harness from a storm: once it is over, do broker, proxies and database answer, and is there room?

Promises: a part that runs and does not answer (wedged, stopped by somebody) is one sentence, within a few seconds. One
that died is on record anyway, and whatever can still be read of the run is judged.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from harness.environment.probes import probe_nats, probe_postgres
from harness.environment.topology import DATABASE
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.environment.toxiproxy.server import TOXIPROXY
from harness.errors import EnvironmentFailedError

if TYPE_CHECKING:
    from harness.environment.backend import Environment

ANSWER_WITHIN_S = 5.0

ROOM_MIN_BYTES = 1024 * 1024
"""With less than this, what broker, databases and spools could not write proves nothing."""


async def ensure_sound(environment: Environment) -> None:
    """Raise EnvironmentFailedError when a part that runs does not answer, or a disk of the run is full."""
    for directory in (environment.scratch_directory, environment.spool_directory):
        if shutil.disk_usage(directory).free < ROOM_MIN_BYTES:
            raise EnvironmentFailedError(
                f"the disk of {directory} is full, so what could not be written proves nothing: make room, "
                "or choose another place with TMPDIR and --runs-dir"
            )
    roles = [*environment.nodes, TOXIPROXY, *([] if environment.postgres_url is None else [DATABASE])]
    running = [role for role in roles if environment.is_running(role)]
    for role, seen in zip(running, await asyncio.gather(*(_ask(environment, role) for role in running)), strict=True):
        if seen is not None:
            raise EnvironmentFailedError(
                f"{role} runs and does not answer, although the storm is over ({seen}): it hangs, or was "
                "stopped; what the system did meanwhile proves nothing, look into its log"
            )


async def _ask(environment: Environment, role: str) -> str | None:
    address = environment.address(role)
    if role == TOXIPROXY:
        return await _ask_toxiproxy(address)
    if role == DATABASE:
        return await probe_postgres(address, ANSWER_WITHIN_S)
    return await probe_nats(address, ANSWER_WITHIN_S, access=environment.broker)


async def _ask_toxiproxy(address: str) -> str | None:
    # The proxies, not the version: a black-holed upstream wedges what has to look at them.
    try:
        await ToxiproxyClient(address, timeout_s=ANSWER_WITHIN_S).proxies()
    except EnvironmentFailedError as error:
        return str(error)
    return None
