"""The broker is three servers, and one of them is lost: cut off, or dead."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaos.faults.isolation import From, Isolate
from chaos.faults.kill import Kill
from harness.environment.choice import BackendChoice
from harness.live_run import live_run
from harness.records import Outcome
from scenarios.command import stormproof
from scenarios.shop import SHOP
from scenarios.shop.shop import Shop
from system import topology
from system.jetstream import Connection
from system.jetstream.streams import TopologyError
from system.metrics import Metrics
from system.settings import NatsSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.live_run import LiveRun
    from harness.runs import RunDirectory

ELECTED_WITHIN_S = 60.0
"""Elections come 4 to 9 s after the last word of a leader, and sometimes need a second and a third round."""


@pytest.fixture
async def clustered_run(
    run_directory: RunDirectory,
    chaos_seed: int,
    toxiproxy_binary: Path,  # noqa: ARG001 - asked for so that its absence skips by name
) -> AsyncIterator[LiveRun]:
    """Start the shop on a cluster, its streams kept by all three servers."""
    async with live_run(SHOP, run_directory, seed=chaos_seed, choice=BackendChoice(name="cluster")) as run:
        yield run


@pytest.fixture
def clustered_shop(clustered_run: LiveRun) -> Shop:
    """Return the shop on a cluster, to be driven by a test."""
    return Shop(clustered_run)


async def place_until_somebody_leads(shop: Shop) -> None:
    """Place orders until they are accepted again, and then some: an election may take longer than any fixed load."""
    async with asyncio.timeout(ELECTED_WITHIN_S):
        while not all(order.outcome is Outcome.OK for order in await shop.place_orders(count=20, rate_per_s=20)):
            pass
    await shop.place_orders(count=200)


async def test_every_promise_holds_when_the_leader_of_the_orders_hears_nobody(clustered_shop: Shop) -> None:
    """Another one leads meanwhile; the old one comes back with what it believed, and must give in."""
    await clustered_shop.place_orders(count=30)
    async with clustered_shop.under(Isolate(node="leader:ORDERS", from_=From.BOTH)):
        await place_until_somebody_leads(clustered_shop)

    judgement = await clustered_shop.judge()

    assert judgement.holds, judgement.explain()


async def test_every_promise_holds_when_the_leader_of_the_orders_dies(clustered_shop: Shop) -> None:
    """What it had acknowledged, one of the others has too."""
    await clustered_shop.place_orders(count=30)
    async with clustered_shop.under(Kill(process="leader:ORDERS")):
        await place_until_somebody_leads(clustered_shop)

    judgement = await clustered_shop.judge()

    assert judgement.holds, judgement.explain()


async def test_streams_that_fewer_servers_keep_than_are_asked_for_are_a_clear_error(clustered_run: LiveRun) -> None:
    """Whoever is told another number of replicas than the streams have must not start and promise something else."""
    broker = clustered_run.environment.broker
    settings = NatsSettings(url=broker.url, user=broker.user, password=broker.password)

    async with Connection(settings, name="test", metrics=Metrics()) as connection:
        await connection.open()
        await topology.ensure(connection, (), replicas=3)
        with pytest.raises(TopologyError, match="stream ORDERS exists but differs: num_replicas is 3, wanted 1"):
            await topology.ensure(connection, (), replicas=1)


def test_an_experiment_that_needs_a_cluster_says_so_before_anything_starts(tmp_path: Path) -> None:
    """The words that are missing are in the sentence."""
    finished = stormproof("run", "leader-isolation", "--runs-dir", str(tmp_path))

    assert finished.returncode == 64
    assert "'leader-isolation' cannot be carried out on embedded: add --backend cluster" in finished.stderr
    assert list(tmp_path.iterdir()) == []
