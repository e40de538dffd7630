"""From one nats-server to the next on the store that is there: what was acknowledged is kept, also while it happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from harness.environment.nats.access import fresh_access
from harness.environment.nats.server import DISTRIBUTION, NatsServer
from harness.environment.nats.versions import find_nats_server_version
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.processes.supervisor import Supervisor
from harness.environment.tests.clients import STREAM, let_in, published, stored
from harness.environment.tests.conftest import absent
from harness.environment.tests.small_cluster import build_cluster
from harness.errors import EnvironmentFailedError

OLD, MIDDLE = "2.11.11", "2.12.8"
WORKER = "worker"
ROUNDS_WITHIN_S = 30.0


@pytest.fixture
async def versions(request: pytest.FixtureRequest) -> dict[str, Path]:
    """Real servers by version, oldest first; the last is the pinned one."""
    try:
        wanted = (OLD, MIDDLE, metadata.version(DISTRIBUTION))
        return {version: await find_nats_server_version(version) for version in wanted}
    except (EnvironmentFailedError, metadata.PackageNotFoundError) as error:
        absent(request, str(error))
        raise


def version_of(client: Client) -> str:
    """The version of the server that it is connected to."""
    version = client.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


@dataclass(kw_only=True)
class Publisher:
    """Publishes numbered messages, each until it is acknowledged."""

    client: Client
    acknowledged: list[str] = field(default_factory=list)
    _one_more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def publish(self, count: int) -> None:
        """So many more."""
        for _ in range(count):
            name = f"order-{len(self.acknowledged)}"
            await published(self.client.jetstream(), name, within_s=ROUNDS_WITHIN_S)
            async with self._one_more:
                self.acknowledged.append(name)
                self._one_more.notify_all()

    async def wait_for_more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(ROUNDS_WITHIN_S), self._one_more:
            await self._one_more.wait_for(lambda: len(self.acknowledged) >= wanted)


@asynccontextmanager
async def publishing(publisher: Publisher) -> AsyncIterator[None]:
    """Messages one after another for as long as this lasts."""

    async def go_on() -> None:
        while not is_over.is_set():
            await publisher.publish(1)

    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(go_on())
        try:
            yield
        finally:
            is_over.set()


async def test_one_server_keeps_its_store_from_version_to_version(
    versions: dict[str, Path], supervisor: Supervisor, lease: PortLease, tmp_path: Path
) -> None:
    """Messages, what a consumer has acknowledged, and the memory of message ids."""
    address, monitoring = (f"{LOOPBACK}:{port}" for port in lease.take(2))
    (old, binary), *newer = versions.items()
    server = NatsServer(
        host=supervisor,
        binary=binary,
        address=address,
        monitoring_address=monitoring,
        directory=tmp_path / "nats",
        log_path=tmp_path / "nats.log",
        environment={"PATH": os.defpath},
        access=fresh_access([address]),
    )
    await server.start()
    async with let_in(server.access) as client:
        publisher = Publisher(client=client)
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"], duplicate_window=120))
        await stream.add_consumer(STREAM, ConsumerConfig(durable_name=WORKER, ack_policy=AckPolicy.EXPLICIT))
        assert version_of(client) == old
        await publisher.publish(10)
        await acknowledge(client, count=4)

        for rounds, (version, newer_binary) in enumerate(newer, start=2):
            await server.stop()
            server.use(newer_binary)
            await server.start()
            await publisher.publish(10)
            await published(stream, "order-0")  # a duplicate
            await acknowledge(client, count=4)

            assert version_of(client) == version
            assert await stored(client) == publisher.acknowledged
            consumer = await stream.consumer_info(STREAM, WORKER)
            assert consumer.ack_floor is not None
            assert consumer.ack_floor.stream_seq == 4 * rounds
        assert len(publisher.acknowledged) == 30


async def acknowledge(client: Client, *, count: int) -> None:
    """Take so many messages and acknowledge them, confirmed by the server."""
    subscription = await client.jetstream().pull_subscribe_bind(WORKER, STREAM)
    for message in await subscription.fetch(count, timeout=10):
        await message.ack_sync()
    await subscription.unsubscribe()


async def test_a_cluster_is_upgraded_server_by_server_under_load(
    versions: dict[str, Path], supervisor: Supervisor, lease: PortLease, tmp_path: Path, toxiproxy_binary: Path
) -> None:
    """Two of three always serve: every message is acknowledged, and what was acknowledged is stored once, in order."""
    small = build_cluster(supervisor, lease, tmp_path, nats_binary=versions[MIDDLE], toxiproxy_binary=toxiproxy_binary)
    await small.start()
    pinned = list(versions)[-1]
    async with let_in(small.wiring.access) as client:
        publisher = Publisher(client=client)
        await client.jetstream().add_stream(
            StreamConfig(name=STREAM, subjects=["orders.>"], num_replicas=3, duplicate_window=120)
        )

        async with publishing(publisher):
            for server in small.cluster._servers:
                await server.stop()
                await publisher.wait_for_more(20)  # while it is away
                server.use(versions[pinned])
                await small.cluster.nodes[server.name].start()
                await publisher.wait_for_more(20)  # while it is back

        assert await stored(client) == publisher.acknowledged
        assert len(publisher.acknowledged) >= 120
    for server in small.cluster._servers:
        async with let_in(server.access) as client:
            assert version_of(client) == pinned
