"""Three real servers as one broker: fast to start, led by somebody, whole again after losses, and cut where we cut."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, StreamConfig

from harness.environment.layout import CLUSTER_NODES, NOWHERE, monitoring_of, routes_of
from harness.environment.loopback_http import exchange
from harness.environment.ports import PortLease, why_taken
from harness.environment.probes import probe_nats
from harness.environment.processes.supervisor import Supervisor
from harness.environment.tests.clients import let_in, published, stored
from harness.environment.tests.small_cluster import SmallCluster, build_cluster
from harness.environment.toxiproxy.toxics import Direction, TimeoutToxic
from harness.errors import EnvironmentFailedError, UsageError

READY_MAX_S = 3.0
ELECTION_WITHIN_S = 25.0
"""Elections come 4 to 9 s after the last word of a leader, and sometimes need a second round."""


@pytest.fixture
def small(
    supervisor: Supervisor, lease: PortLease, tmp_path: Path, nats_binary: Path, toxiproxy_binary: Path
) -> SmallCluster:
    """A cluster that is not started yet."""
    return build_cluster(supervisor, lease, tmp_path, nats_binary=nats_binary, toxiproxy_binary=toxiproxy_binary)


@pytest.fixture
async def started(small: SmallCluster) -> SmallCluster:
    """A cluster that is ready."""
    await small.start()
    return small


async def with_orders(client: Client) -> None:
    """Create a stream that all three servers keep, and a consumer."""
    stream = client.jetstream(timeout=10)
    await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], num_replicas=3))
    await stream.add_consumer("ORDERS", ConsumerConfig(durable_name="payments"))


async def wait_for(condition: Callable[[], Awaitable[bool]], *, what: str) -> None:
    """Wait until servers say so."""
    deadline_s = time.monotonic() + ELECTION_WITHIN_S
    while not await condition():
        assert time.monotonic() < deadline_s, f"waited {ELECTION_WITHIN_S:g} s in vain for: {what}"
        await asyncio.sleep(0.05)


async def behind(small: SmallCluster) -> list[str]:
    """What keeps servers from being up to date."""
    view = await small.cluster.view()
    whys = [view.why_behind(f"stormproof-{node}") for node in CLUSTER_NODES]
    return [why for why in whys if why is not None]


async def routes(small: SmallCluster, node: str) -> list[dict[str, object]]:
    """The routes of one server, as its monitoring lists them."""
    answer = await exchange(small.wiring.listen(monitoring_of(node)), "GET", "/routez", timeout_s=1)
    found = json.loads(answer.body)["routes"]
    assert isinstance(found, list)
    return found


async def cut(small: SmallCluster, links: Sequence[str]) -> None:
    """Let nothing through."""
    for link in links:
        for way in Direction:
            await small.proxies.client.add_toxic(link, TimeoutToxic(), direction=way, name=f"cut_{way}")


async def heal(small: SmallCluster, links: Sequence[str]) -> None:
    """Let everything through again."""
    for link in links:
        for way in Direction:
            await small.proxies.client.remove_toxic(link, f"cut_{way}")


def routes_about(small: SmallCluster, node: str) -> list[str]:
    """The links between one server and its peers."""
    return [
        link.name
        for link in small.wiring.links.values()
        if node in (link.client, link.server) and {link.client, link.server} <= set(CLUSTER_NODES)
    ]


async def test_all_servers_are_ready_at_once_with_a_leader_and_nobody_behind(small: SmallCluster) -> None:
    """A generous bound against accidents; some 0.2 to 0.7 s are usual. The next election would come after 4 s."""
    began_s = time.monotonic()
    await small.start()
    took_s = time.monotonic() - began_s

    assert await behind(small) == []
    assert await small.cluster.leader_of("meta") in CLUSTER_NODES
    assert took_s < READY_MAX_S


async def test_a_route_leads_through_its_proxy_only_also_after_a_server_was_away(started: SmallCluster) -> None:
    """Servers tell each other where the others listen; whoever believed it would go around the proxies."""
    proxies = {link.listen for link in started.wiring.links.values()}

    async def is_whole() -> bool:
        return all([len(await routes(started, node)) == 2 for node in CLUSTER_NODES])

    leader = await started.cluster.leader_of("meta")
    follower = next(node for node in CLUSTER_NODES if node != leader)
    for away in (None, follower):
        if away is not None:
            await started.supervisor.kill(away)
            await started.cluster.nodes[away].start()
        await wait_for(is_whole, what="two routes of each server")
        dialled = [
            f"{route['ip']}:{route['port']}"
            for node in CLUSTER_NODES
            for route in await routes(started, node)
            if route["did_solicit"]
        ]
        # The end that accepted a connection sees Toxiproxy's own port. A server says of both ends that they were
        # dialled when both were, one of which was then dropped.
        own = {started.wiring.listen(routes_of(node)) for node in CLUSTER_NODES}
        assert not own & set(dialled), "somebody dialled a server and not its proxy"
        assert len(proxies & set(dialled)) == 3, "one connection for each pair, each dialled at a proxy"


async def test_what_gossip_tells_leads_nowhere(started: SmallCluster) -> None:
    """No client is told of another server, no server of a place where one listens."""
    host, _, port = started.wiring.listen("nats-1").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    told = json.loads((await reader.readline())[5:])
    writer.transport.abort()
    host, _, port = started.wiring.listen(routes_of("nats-1")).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    told_peers = json.loads((await reader.readline())[5:])
    writer.transport.abort()

    assert "connect_urls" not in told
    assert told_peers["ip"] == f"nats-route://{started.wiring.listen(NOWHERE)}/"
    assert why_taken(*_split(started.wiring.listen(NOWHERE))) is None, "nobody listens there"


async def test_nobody_is_let_in_without_credentials_neither_as_client_nor_as_route(started: SmallCluster) -> None:
    """Each run has its own; a stranger on the same machine gets nothing."""
    assert "Authorization Violation" in (await probe_nats(started.wiring.listen("nats-1")) or "let in")
    host, _, port = started.wiring.listen(routes_of("nats-1")).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"user":"stormproof-route","pass":"guessed"}\r\nPING\r\n')
    said = (await reader.read()).decode()
    writer.transport.abort()

    assert "Authorization Violation" in said
    assert "PONG" not in said


async def test_a_stream_and_a_consumer_have_leaders_of_their_own_and_nobody_leads_what_is_not_there(
    started: SmallCluster,
) -> None:
    """By the words a fault aims with."""
    async with let_in(started.wiring.access, dont_randomize=True) as client:
        await with_orders(client)
        stream = await client.jetstream().stream_info("ORDERS")
        consumer = await client.jetstream().consumer_info("ORDERS", "payments")
        assert stream.cluster is not None
        assert consumer.cluster is not None

        assert f"stormproof-{await started.cluster.leader_of('ORDERS')}" == stream.cluster.leader
        assert f"stormproof-{await started.cluster.leader_of('ORDERS/payments')}" == consumer.cluster.leader
    with pytest.raises(EnvironmentFailedError, match="nobody leads NOTHING: no server that answers keeps"):
        await started.cluster.leader_of("NOTHING")
    with pytest.raises(UsageError, match="leader of what"):
        await started.cluster.leader_of("")


async def test_without_most_servers_nobody_leads_and_one_that_starts_alone_is_ready_for_clients(
    started: SmallCluster,
) -> None:
    """The error says who follows whom; a server does not wait for peers that nobody starts."""
    for node in ("nats-1", "nats-2", "nats-3"):
        await started.supervisor.kill(node)

    await started.cluster.nodes["nats-1"].start()

    with pytest.raises(
        EnvironmentFailedError,
        match="nobody has led meta for 3 s: stormproof-nats-1 follows nobody, stormproof-nats-2 says nothing",
    ):
        await started.cluster.leader_of("meta")
    await started.cluster.start()
    assert await started.cluster.leader_of("meta") in CLUSTER_NODES


async def test_what_was_acknowledged_survives_the_death_of_the_leader_and_of_the_whole_broker(
    started: SmallCluster,
) -> None:
    """Another one takes over; the dead one comes back and catches up; then all die at once and come back."""
    async with let_in(started.wiring.access, dont_randomize=True) as client:
        await with_orders(client)
        await published(client.jetstream(), "before")
        leader = await started.cluster.leader_of("ORDERS")

        await started.supervisor.kill(leader)
        await published(client.jetstream(), "without it")
        assert await started.cluster.leader_of("ORDERS") != leader
        await started.cluster.nodes[leader].start()
        await published(client.jetstream(), "with it again")

        for node in CLUSTER_NODES:
            await started.supervisor.kill(node)
        await started.cluster.start()
        await published(client.jetstream(), "all again")

        assert await stored(client) == ["before", "without it", "with it again", "all again"]
    assert await behind(started) == []


async def test_a_leader_cut_from_its_peers_acknowledges_nothing_and_nothing_acknowledged_is_lost(
    started: SmallCluster,
) -> None:
    """The heart of it: the cut really isolates, the others go on, and the healed one drops what nobody confirmed."""
    access = started.wiring.access
    async with let_in(access, dont_randomize=True) as client:
        await with_orders(client)
        await published(client.jetstream(), "before")
    old = await started.cluster.leader_of("ORDERS")
    majority = [node for node in CLUSTER_NODES if node != old]
    about = routes_about(started, old)
    before = {link: await _crossed(started, link) for link in about}
    async with (
        let_in(access.at([started.wiring.listen(old)]), dont_randomize=True) as isolated,
        let_in(access.at([started.wiring.listen(node) for node in majority]), dont_randomize=True) as client,
    ):
        await cut(started, about)
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await isolated.jetstream(timeout=1).publish("orders.created", b"into the void")
        await published(client.jetstream(), "meanwhile")

        async def is_given_up() -> bool:
            return await routes(started, old) == []

        await wait_for(is_given_up, what="the routes of the isolated server to end")
        assert await started.cluster.leader_of("ORDERS") in majority
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await isolated.jetstream(timeout=1).publish("orders.created", b"still nobody hears")

        await heal(started, about)
        await started.cluster.nodes[old].wait_ready()
        await published(client.jetstream(), "after")

        assert await stored(client) == ["before", "meanwhile", "after"]
        assert await stored(isolated) == ["before", "meanwhile", "after"], "asked through the healed one"
    swallowed = [await _crossed(started, link) for link in about]
    assert sum(after - before[link] for link, after in zip(about, swallowed, strict=True)) > 0


async def test_no_secret_is_in_a_log_or_an_argument(started: SmallCluster) -> None:
    """Passwords are in the servers' configuration files, which are their owner's alone."""
    secrets = (started.wiring.access.password or "", started.route_password)
    logs = "".join(path.read_text() for path in started.log_directory.iterdir())
    arguments = "".join(Path(f"/proc/{started.supervisor.pid(node)}/cmdline").read_text() for node in CLUSTER_NODES)

    for secret in secrets:
        assert len(secret) >= 32
        assert secret not in logs
        assert secret not in arguments
    for node in CLUSTER_NODES:
        (configuration,) = (started.wiring.scratch_directory / node).glob("*.conf")
        assert configuration.stat().st_mode & 0o777 == 0o600


async def test_a_server_that_cannot_start_fails_the_start_with_its_own_words(small: SmallCluster) -> None:
    """A stranger took the port of the third one between the lease and the start."""
    host, port = _split(small.wiring.listen("nats-3"))
    stranger = await asyncio.start_server(lambda _reader, writer: writer.close(), host, port)

    with pytest.raises(EnvironmentFailedError, match=r"nats-3 ended with (?s:.)*address already in use"):
        await small.start()

    stranger.close()
    await stranger.wait_closed()


async def _crossed(small: SmallCluster, link: str) -> int:
    counters = [await small.proxies.client.bytes_of(link, way) for way in Direction]
    return sum(counter.swallowed_bytes for counter in counters)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
