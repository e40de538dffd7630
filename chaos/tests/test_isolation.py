"""A server of a real cluster that hears nobody: who is cut off, who goes on, and what is whole again after the heal."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from chaos.faults.isolation import From, Isolate
from harness.environment.choice import BackendChoice
from harness.environment.layout import CLUSTER_NODES
from harness.environment.opening import open_environment
from harness.environment.running import RunningEnvironment
from harness.environment.tests.clients import let_in, published, stored
from harness.environment.tests.small_system import owned_by
from harness.environment.topology import Link, Topology
from harness.errors import EnvironmentFailedError, PlanError, UsageError

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")

CLIENTS = Topology(processes=(), links=(Link(client="clients", server="nats"),))
ELECTION_WITHIN_S = 25.0
"""Elections come 4 to 9 s after the last word of a leader, and sometimes need a second round."""


@asynccontextmanager
async def running(directory: Path, choice: BackendChoice) -> AsyncIterator[RunningEnvironment]:
    """A broker with proxies and no system; nothing of it is left."""
    opened = open_environment(
        choice, CLIENTS, run_id="isolation", run_directory=directory, seed=7, otlp_url="http://127.0.0.1:4318"
    )
    async with opened as environment:
        yield environment
    assert owned_by(os.getpid()) == []


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[RunningEnvironment]:
    """A cluster."""
    async with running(tmp_path, BackendChoice(name="cluster")) as started:
        yield started


@asynccontextmanager
async def connected(environment: RunningEnvironment, *nodes: str) -> AsyncIterator[Client]:
    """A client of these servers, through its proxies."""
    access = environment.broker.at([environment.links[f"clients->{node}"].listen for node in nodes])
    async with let_in(access) as client:
        yield client


async def create_orders(environment: RunningEnvironment) -> None:
    """A stream that every server keeps."""
    async with connected(environment, *environment.nodes) as client:
        replicas = environment.wiring.replicas
        await client.jetstream(timeout=10).add_stream(
            StreamConfig(name="ORDERS", subjects=["orders.>"], num_replicas=replicas)
        )


async def is_acknowledged(client: Client, text: str, *, within_s: float = 1.0) -> bool:
    """Whether a publish is acknowledged within this time, tried again and again under one id."""
    try:
        await published(client.jetstream(), text, within_s=within_s)
    except TimeoutError:
        return False
    return True


async def test_a_leader_isolated_from_its_peers_confirms_nothing_and_another_one_takes_over(
    environment: RunningEnvironment,
) -> None:
    """Its clients reach it and get no acknowledgement; those of the others go on; all agree after the heal."""
    await create_orders(environment)
    fault = Isolate(node="leader:ORDERS", from_=From.PEERS).on(environment)
    old = await environment.resolve("leader:ORDERS")
    others = [node for node in CLUSTER_NODES if node != old]

    async with connected(environment, old) as isolated, connected(environment, *others) as client:
        await fault.inject()
        assert await environment.probe(f"clients->{old}") is None, "its clients reach it"
        assert not await is_acknowledged(isolated, "to the isolated one")
        assert await is_acknowledged(client, "to the others", within_s=ELECTION_WITHIN_S)
        assert await environment.resolve("leader:ORDERS") in others
        assert not await is_acknowledged(isolated, "to the isolated one, who believes to lead")
        await fault.heal()

        assert await is_acknowledged(isolated, "after the heal", within_s=ELECTION_WITHIN_S)
        assert await stored(isolated) == await stored(client) == ["to the others", "after the heal"]

    grip = await fault.grip()
    assert grip.caught > 0
    assert grip.unit == f"bytes ({old})"
    assert [await environment.probe(link) for link in environment.links] == [None] * len(environment.links)


async def test_a_server_isolated_from_its_clients_goes_on_with_its_peers(environment: RunningEnvironment) -> None:
    """Nobody reaches it; it keeps what the others store, and whatever it led it still leads."""
    await create_orders(environment)
    leader = await environment.resolve("leader:ORDERS")
    others = [node for node in CLUSTER_NODES if node != leader]
    fault = Isolate(node=leader, from_=From.CLIENTS).on(environment)

    async with connected(environment, leader) as cut, connected(environment, *others) as client:
        await fault.inject()
        assert "in vain" in (await environment.probe(f"clients->{leader}", timeout_s=0.2) or "it answers")
        assert not await is_acknowledged(cut, "lost on the way")
        assert await is_acknowledged(client, "through another server")
        assert await environment.resolve("leader:ORDERS") == leader
        await fault.heal()
        assert await is_acknowledged(cut, "after the heal", within_s=ELECTION_WITHIN_S)
        assert await stored(client) == ["through another server", "after the heal"]

    grip = await fault.grip()
    assert grip.caught > 0
    assert grip.unit == "bytes"


async def test_an_isolation_that_nobody_notices_catches_nothing(environment: RunningEnvironment) -> None:
    """No client is there; a run with such a fault is vacuous."""
    fault = Isolate(node="nats-2", from_=From.CLIENTS).on(environment)
    await fault.inject()
    await fault.heal()

    # The probe of the heal crosses a link that is whole again, and is not swallowed.
    assert (await fault.grip()).caught == 0


async def test_without_a_leader_nothing_is_isolated_and_nothing_has_to_be_healed(
    environment: RunningEnvironment,
) -> None:
    """The window then says why; a guess would isolate somebody."""
    fault = Isolate(node="leader:NOTHING").on(environment)

    with pytest.raises(EnvironmentFailedError, match="nobody leads NOTHING"):
        await fault.inject()
    await fault.heal()

    assert (await fault.grip()).caught == 0
    for link in environment.links.values():
        assert await environment.toxiproxy.toxics(link.proxy) == ()


async def test_everything_between_a_server_and_the_rest_is_cut_and_nothing_else(
    environment: RunningEnvironment,
) -> None:
    """Both directions of each of its routes, and every client's link to it."""
    fault = Isolate(node="nats-2").on(environment)
    await fault.inject()
    cut = {name for name, link in environment.links.items() if await environment.toxiproxy.toxics(link.proxy)}
    await fault.heal()

    assert cut == {"nats-1->nats-2", "nats-2->nats-1", "nats-3->nats-2", "nats-2->nats-3", "clients->nats-2"}


async def test_a_server_that_is_not_there_is_wrong_use(environment: RunningEnvironment) -> None:
    """The message names those that are."""
    with pytest.raises(UsageError, match="no server 'payments' to isolate; there is: nats-1, nats-2, nats-3, leader:"):
        Isolate(node="payments").on(environment)


async def test_a_broker_of_one_server_is_wrong_use(tmp_path: Path) -> None:
    """The message names the backend that has more."""
    async with running(tmp_path, BackendChoice()) as alone:
        with pytest.raises(UsageError, match=r"a broker of one server has no peers .*: add --backend cluster"):
            Isolate(node="leader:ORDERS").on(alone)


def test_an_isolation_is_written_down_in_full() -> None:
    """What `plan.json` shows is what will be played."""
    assert Isolate(node="leader:ORDERS", from_=From.PEERS).plan() == {
        "fault": "isolate",
        "node": "leader:ORDERS",
        "from": "peers",
    }


def test_isolating_from_somebody_unknown_is_refused_at_birth() -> None:
    """It would cut nothing, and say nothing."""
    with pytest.raises(PlanError, match="from_='friends' is none of peers, clients, both"):
        Isolate(node="nats-1", from_="friends")  # type: ignore[arg-type]  # that is the point
