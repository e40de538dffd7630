"""A harness that cannot see must not say that all is well."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaos.faults.kill import Kill
from chaos.faults.partition import Partition
from harness.environment.topology import BROKER, ProcessSpec, Topology
from harness.invariants.verdict import UNKNOWN
from harness.live_run import live_run
from scenarios.shop import SHOP
from scenarios.shop.invariants import connected_traces, no_double_charge, zero_dropped_orders
from scenarios.shop.shop import Shop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.environment.topology import Wiring
    from harness.runs import RunDirectory
    from harness.system_under_test import SystemUnderTest

BYSTANDER = """
import http.server, os
host, port = os.environ["LISTEN"].split(":")
http.server.HTTPServer((host, int(port)), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")


def with_payments(change: Callable[[Wiring, dict[str, str]], Mapping[str, str]]) -> SystemUnderTest:
    """Return the shop with other environment variables for payments."""

    def changed(environment: Callable[[Wiring], Mapping[str, str]]) -> Callable[[Wiring], Mapping[str, str]]:
        return lambda wiring: change(wiring, dict(environment(wiring)))

    processes = tuple(
        replace(spec, environment=changed(spec.environment)) if spec.name == "payments" else spec
        for spec in SHOP.topology.processes
    )
    return replace(SHOP, topology=Topology(processes=processes, links=SHOP.topology.links))


async def test_a_partition_that_payments_bypasses_is_vacuous(run_directory: RunDirectory, chaos_seed: int) -> None:
    """It talks to the broker past the proxy: orders are in flight, everything settles, and nothing was tested."""
    bypassing = with_payments(lambda wiring, own: {**own, "NATS_URL": f"nats://{wiring.listen(BROKER)}"})

    async with live_run(bypassing, run_directory, seed=chaos_seed) as run:
        shop = Shop(run)
        async with shop.under(Partition(link="payments->nats")):
            await shop.place_orders(count=100)
        judgement = await shop.judge(zero_dropped_orders, no_double_charge)

    assert judgement.state is UNKNOWN
    assert judgement.vacuous == (
        "fault partition on payments->nats is vacuous: it caught no bytes, so nothing went through what it broke",
    )


async def test_a_partition_while_nothing_is_in_flight_is_vacuous(shop: Shop) -> None:
    """The link was cut and healed, and no order noticed."""
    order = await shop.place_order()
    await shop.trace_of(order)
    async with shop.under(Partition(link="payments->provider")):
        pass

    judgement = await shop.judge(zero_dropped_orders, no_double_charge)

    assert judgement.state is UNKNOWN
    (sentence,) = judgement.vacuous
    assert "vacuous" in sentence


async def test_spans_that_died_with_their_process_are_missed_not_ignored(
    run_directory: RunDirectory, chaos_seed: int
) -> None:
    """Payments spools nothing, so SIGKILL takes its unsent spans along: what cannot be shown is not claimed."""
    unspooled = with_payments(
        lambda _wiring, own: {name: value for name, value in own.items() if name != "SPAN_SPOOL_DIR"}
    )

    async with live_run(unspooled, run_directory, seed=chaos_seed) as run:
        shop = Shop(run)
        await shop.place_orders(count=30)
        async with shop.under(Kill(process="payments")):
            await shop.place_orders(count=30)
        judgement = await shop.judge(connected_traces, zero_dropped_orders)

    traces, orders = judgement.verdicts
    assert traces.state is UNKNOWN, judgement.explain()
    assert "payments" in traces.reason
    assert orders.state == "HOLDS", judgement.explain()


async def test_a_kill_of_a_process_that_nobody_needs_is_vacuous(run_directory: RunDirectory, chaos_seed: int) -> None:
    """Orders are in flight when it comes back, as ever, and none of them took any longer."""
    bystander = ProcessSpec(
        name="bystander",
        argv=(sys.executable, "-c", BYSTANDER),
        environment=lambda wiring: {"LISTEN": wiring.listen("bystander")},
        ready_path="/",
    )
    processes = (*SHOP.topology.processes, bystander)
    crowded = replace(SHOP, topology=Topology(processes=processes, links=SHOP.topology.links))

    async with live_run(crowded, run_directory, seed=chaos_seed) as run:
        shop = Shop(run)
        await shop.place_orders(count=60)
        async with shop.under(Kill(process="bystander")):
            await shop.place_orders(count=60)
        judgement = await shop.judge(zero_dropped_orders, no_double_charge)

    assert judgement.state is UNKNOWN, judgement.explain()
    assert judgement.vacuous == ("fault kill on bystander is vacuous: no operation in flight was held up by it",)
