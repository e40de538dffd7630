"""Finds the Docker engine of this host, or says why there is none that a run could use.

Promises: an answer within a few seconds, also when the engine hangs.

Does not: start one.
"""

from __future__ import annotations

import asyncio
import os

from harness.environment.containers.docker_socket import DockerError, DockerSocket, socket_path
from harness.errors import EnvironmentFailedError

REMEDY = "start Docker, or choose --backend embedded, which needs none"


async def find_engine() -> DockerSocket:
    """The engine. Raises EnvironmentFailedError with the remedy when there is none, or none of this host."""
    try:
        docker = DockerSocket(socket_path(os.environ))
        why_not = await asyncio.to_thread(_why_not_this_host, docker)
    except DockerError as error:
        raise EnvironmentFailedError(f"no Docker engine answers: {error}; {REMEDY}") from error
    if why_not is not None:
        raise EnvironmentFailedError(
            f"the Docker engine at {docker.url} is of no use here: {why_not}, and the containers of a run share this "
            "host's network and directories; use an engine of this host, or --backend embedded"
        )
    return docker


def _why_not_this_host(docker: DockerSocket) -> str | None:
    engine = docker.ask("GET", "/info")
    if engine.get("OSType") != "linux":
        return f"it runs {engine.get('OSType')} containers"
    if "Docker Desktop" in str(engine.get("OperatingSystem")):
        return "it is Docker Desktop's, in a virtual machine"
    if any("rootless" in str(option) for option in engine.get("SecurityOptions") or ()):
        return "it is rootless, so it has a network of its own"
    return None
