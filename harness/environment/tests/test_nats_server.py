"""The real broker: ready means ready, its store survives a kill, and it tells no client a way past the proxy."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from harness.environment.nats.access import fresh_access
from harness.environment.nats.server import NatsServer
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.processes.supervisor import Supervisor
from harness.errors import EnvironmentFailedError


@pytest.fixture
def broker(supervisor: Supervisor, nats_binary: Path, lease: PortLease, tmp_path: Path) -> NatsServer:
    """A broker that is not started yet."""
    client, monitoring = lease.take(2)
    return NatsServer(
        host=supervisor,
        binary=nats_binary,
        address=f"{LOOPBACK}:{client}",
        monitoring_address=f"{LOOPBACK}:{monitoring}",
        directory=tmp_path / 'a directory with spaces and "quotes"',
        log_path=tmp_path / "nats.log",
        environment={"PATH": os.defpath},
        access=fresh_access([f"{LOOPBACK}:{client}"]),
    )


async def connected(broker: NatsServer) -> Client:
    """A client that is let in."""
    access = broker.access
    return await nats.connect(
        list(access.urls), user=access.user, password=access.password, max_reconnect_attempts=0, allow_reconnect=False
    )


async def test_messages_that_were_stored_survive_a_kill(broker: NatsServer) -> None:
    """The store stays on disk for the whole run, whatever happens to the process."""
    await broker.start()
    connection = await connected(broker)
    stream = connection.jetstream()
    await stream.add_stream(name="S", subjects=["s"])
    for number in range(3):
        await stream.publish("s", str(number).encode())
    await connection.close()

    await broker.host.kill(broker.name)
    await broker.start()

    connection = await connected(broker)
    assert (await connection.jetstream().stream_info("S")).state.messages == 3
    await connection.close()


async def test_the_broker_advertises_no_other_address(broker: NatsServer) -> None:
    """Clients follow `connect_urls` past the proxy, and then a partition touches nobody."""
    await broker.start()
    host, _, port = broker.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    info = json.loads((await reader.readline())[5:])
    writer.transport.abort()

    assert "connect_urls" not in info
    assert info["jetstream"] is True


async def test_a_broker_that_cannot_listen_fails_with_its_own_words(broker: NatsServer) -> None:
    """A stranger took the port between the lease and the start."""
    host, _, port = broker.address.rpartition(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(EnvironmentFailedError, match="address already in use"),
    ):
        await broker.start()
