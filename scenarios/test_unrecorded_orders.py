"""Orders that the harness did not place are judged like its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from scenarios.shop.invariants import no_double_charge, zero_dropped_orders

if TYPE_CHECKING:
    from harness.live_run import LiveRun


async def test_an_order_that_somebody_else_placed_is_no_false_alarm(live_run: LiveRun) -> None:
    """It is in the stream, so it was accepted; it is final, so it was not dropped."""
    shop_address = live_run.environment.wiring.via("clients->orders")
    async with aiohttp.ClientSession(f"http://{shop_address}") as somebody:
        answer = await somebody.post("/orders", json={"customer_id": "somebody", "total_amount": 12.5})
        assert answer.status == 202

    judgement = await live_run.judge(zero_dropped_orders, no_double_charge)

    assert judgement.holds, judgement.explain()
    assert [verdict.examined for verdict in judgement.verdicts] == [1, 1]
