"""A fault aims by name at what a run consists of: one link or three, a role or whoever leads; and heals all of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from chaos.faults.kill import Kill
from chaos.faults.partition import Direction, Partition
from chaos.program import AfterOperations, FaultProgram, Step
from harness.environment.choice import CLUSTER, EMBEDDED, BackendChoice
from harness.environment.opening import open_environment
from harness.environment.tests.small_system import small_topology
from harness.errors import EnvironmentFailedError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaos.faults.fault import Fault
    from harness.environment.running import RunningEnvironment

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")


@asynccontextmanager
async def running(backend: str, directory: Path) -> AsyncIterator[RunningEnvironment]:
    """A broker, proxies, and two processes that do nothing."""
    async with open_environment(
        BackendChoice(name=backend),
        small_topology(),
        run_id="targets",
        run_directory=directory,
        seed=1,
        otlp_url="http://127.0.0.1:4318",
    ) as environment:
        yield environment


async def test_a_partition_of_a_link_to_a_cluster_cuts_and_mends_every_way(tmp_path: Path) -> None:
    """Also those beside one whose server died meanwhile, which the heal says."""
    async with running(CLUSTER, tmp_path) as environment:
        links = [link.name for link in environment.links_of("payments->nats")]
        partition = Partition(link="payments->nats").on(environment)
        await partition.inject()
        cut = [await environment.probe(link, timeout_s=0.3) for link in links]
        neighbour = await environment.probe("orders->nats")
        await environment.kill("nats-2")
        with pytest.raises(EnvironmentFailedError, match="the link payments->nats-2 does not answer after the heal"):
            await partition.heal()
        healed = {link: await environment.probe(link) for link in links}
        await environment.start("nats-2")
        await partition.heal()
        grip = await partition.grip()

    assert len(links) == 3
    assert None not in cut
    assert neighbour is None
    assert [link for link, seen in healed.items() if seen is not None] == ["payments->nats-2"]
    assert (grip.unit, grip.caught > 0) == ("bytes", True)


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_partition_has_a_direction(direction: Direction, tmp_path: Path) -> None:
    """Whichever way it goes, nobody gets an answer; healed, everybody does."""
    async with running(EMBEDDED, tmp_path) as environment:
        partition = Partition(link="orders->payments", direction=direction).on(environment)
        await partition.inject()
        cut = await environment.probe("orders->payments", timeout_s=0.3)
        await partition.heal()
        await partition.heal()

        assert cut is not None
        assert await environment.probe("orders->payments") is None


async def test_whoever_leads_is_killed_and_started_again(tmp_path: Path) -> None:
    """The grip says who it was: the plan cannot know."""
    async with running(EMBEDDED, tmp_path) as environment:
        leader = Kill(process="leader:ORDERS").on(environment)
        await leader.inject()
        is_dead = not environment.is_running("nats")
        await leader.heal()
        named = Kill(process="payments").on(environment)
        await named.inject()
        await named.heal()

        assert is_dead
        assert environment.is_running("nats")
        assert ((await leader.grip()).unit, (await named.grip()).unit) == ("processes (nats)", "processes")


async def test_a_kill_that_found_nobody_has_nothing_to_heal(tmp_path: Path) -> None:
    """A stream that is not there has no leader."""
    async with running(CLUSTER, tmp_path) as environment:
        kill = Kill(process="leader:NOTHING").on(environment)
        with pytest.raises(EnvironmentFailedError, match="nobody leads NOTHING"):
            await kill.inject()
        await kill.heal()

        assert all(environment.is_running(node) for node in environment.nodes)
        assert (await kill.grip()).caught == 0


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Partition(link="moon->nats"), "no link 'moon->nats'"),
        (Partition(link="orders->nats-2"), "no link 'orders->nats-2'"),
        (Kill(process="moon"), "no role 'moon'"),
        (Kill(process="nats-monitoring"), "nothing that runs"),
    ],
    ids=lambda each: getattr(each, "target", ""),
)
async def test_a_program_with_a_target_that_is_not_there_is_refused_before_it_harms_anybody(
    fault: Fault, complaint: str, tmp_path: Path
) -> None:
    """Its first step could have been played: half a storm proves nothing."""
    steps = [Step(when=AfterOperations(count=1), fault=each, hold_s=0) for each in (Kill(process="orders"), fault)]
    async with running(EMBEDDED, tmp_path) as environment:
        FaultProgram(steps=(steps[0],)).check(environment)
        with pytest.raises(UsageError, match=complaint):
            FaultProgram(steps=tuple(steps)).check(environment)
