"""The backends as the conformance suite knows them: how each is had here, or why not; and somebody's running parts.

Not a test itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from harness.environment.choice import BACKENDS, EXTERNAL, BackendChoice
from harness.environment.containers.docker_socket import DockerSocket, socket_path
from harness.environment.containers.engine import find_engine
from harness.environment.containers.images import TOXIPROXY_IMAGE, find_image
from harness.environment.nats.access import BrokerAccess, fresh_access
from harness.environment.nats.server import NatsServer, find_nats_server
from harness.environment.opening import open_environment
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.probes import probe_nats
from harness.environment.processes.guardian import OWNER_LABEL
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.supervisor import Supervisor
from harness.environment.running import RunningEnvironment
from harness.environment.tests.clients import STREAM
from harness.environment.tests.small_system import small_topology
from harness.environment.topology import Topology
from harness.environment.toxiproxy.binary import find_or_build_toxiproxy
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.environment.toxiproxy.server import ToxiproxyServer

PUBLISH_WITHIN_S = 5.0
CUT_OFF_S = 0.5

Open = Callable[[BackendChoice], AbstractAsyncContextManager[RunningEnvironment]]

KILLED_HARNESS = """
import asyncio, os, sys
from pathlib import Path
from harness.environment.choice import BackendChoice
from harness.environment.opening import open_environment
from harness.environment.tests.clients import STREAM
from harness.environment.tests.small_system import small_topology

async def main():
    name, run_directory, nats_url, toxiproxy_url = sys.argv[1:]
    choice = BackendChoice(name=name, nats_url=nats_url or None, toxiproxy_url=toxiproxy_url or None)
    async with open_environment(
        choice, small_topology(), run_id="killed", run_directory=Path(run_directory), seed=1, otlp_url="http://127.0.0.1:1"
    ):
        print("inside", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


OWNED = tuple(name for name in BACKENDS if name != EXTERNAL)
"""Those whose parts are the run's own: all but `external`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Somebody:
    """Who runs a broker and a Toxiproxy of their own."""

    access: BrokerAccess
    toxiproxy: ToxiproxyClient
    choice: BackendChoice


async def ensure_had(choice: BackendChoice) -> None:
    """Raise EnvironmentFailedError, with the remedy, when this backend cannot be had here."""
    if choice.is_containers:
        await find_image(await find_engine(), TOXIPROXY_IMAGE)
        return
    find_nats_server()
    await find_or_build_toxiproxy(print)


@asynccontextmanager
async def somebody(directory: Path) -> AsyncIterator[Somebody]:
    """Run a broker and a Toxiproxy that no run knows of, with a proxy on it that is none of ours."""
    ownership = Ownership.take("somebody")
    try:
        async with Supervisor(owner_label=ownership.label) as supervisor:
            with PortLease() as lease:
                client, monitoring, api = (f"{LOOPBACK}:{port}" for port in lease.take(3))
                broker = NatsServer(
                    host=supervisor,
                    binary=find_nats_server(),
                    address=client,
                    monitoring_address=monitoring,
                    directory=ownership.scratch_directory / "broker",
                    log_path=directory / "nats.log",
                    environment={"PATH": os.defpath},
                    access=fresh_access([client]),
                )
                toxiproxy = ToxiproxyServer(
                    host=supervisor,
                    find_binary=lambda: find_or_build_toxiproxy(print),
                    address=api,
                    links=(),
                    log_path=directory / "toxiproxy.log",
                    environment={"PATH": os.defpath},
                )
                await broker.start()
                await toxiproxy.start()
                await toxiproxy.client.create("theirs", listen=f"{LOOPBACK}:0", upstream=client)
                yield Somebody(
                    access=broker.access,
                    toxiproxy=toxiproxy.client,
                    choice=BackendChoice(
                        name=EXTERNAL,
                        nats_url=f"nats://{broker.access.user}:{broker.access.password}@{client}",
                        toxiproxy_url=toxiproxy.client.url,
                    ),
                )
    finally:
        await ownership.release()


@asynccontextmanager
async def run_of(
    choice: BackendChoice, directory: Path, topology: Topology | None = None
) -> AsyncIterator[RunningEnvironment]:
    """One environment."""
    async with open_environment(
        choice,
        topology or small_topology(),
        run_id="conformance",
        run_directory=directory,
        seed=7,
        otlp_url="http://127.0.0.1:4318",
    ) as environment:
        yield environment


def containers_of(harness_pid: int) -> list[str]:
    """The names of all containers, running or not, whose owner is this harness."""
    return [
        container.name
        for container in DockerSocket(socket_path(os.environ)).containers(OWNER_LABEL)
        if container.labels[OWNER_LABEL].startswith(f"{harness_pid}:")
    ]


async def stream_on(jetstream: JetStreamContext, environment: RunningEnvironment) -> None:
    """A stream that as many servers hold as there are."""
    await jetstream.add_stream(
        StreamConfig(name=STREAM, subjects=["orders.>"], num_replicas=environment.wiring.replicas)
    )


async def messages_kept(jetstream: JetStreamContext) -> int:
    """How many messages the stream holds, once somebody answers for it."""
    async with asyncio.timeout(30):
        while True:
            try:
                return (await jetstream.stream_info(STREAM)).state.messages
            except (nats.errors.Error, TimeoutError, nats.js.errors.APIError):
                continue


async def seen_with(access: BrokerAccess, url: str) -> str | None:
    """None when a server lets this one in."""
    return await probe_nats(url.partition("://")[2], access=access)


def files_holding(secrets: list[bytes], directory: Path) -> list[str]:
    """The files below a directory that hold one of them."""
    return [
        str(path.relative_to(directory))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets)
    ]


async def killed_inside(choice: BackendChoice, directory: Path, temporary: Path) -> int:
    """Run a harness of its own, kill it when everything runs, and return the pid that it had."""
    arguments = (choice.name, str(directory), choice.nats_url or "", choice.toxiproxy_url or "")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_HARNESS, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as harness:
        assert harness.stdout is not None
        said = await asyncio.to_thread(harness.stdout.readline)
        harness.kill()
        await asyncio.to_thread(harness.wait)
    assert said == b"inside\n"
    return harness.pid
