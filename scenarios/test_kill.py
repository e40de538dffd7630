"""Payments dies with orders in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.faults.kill import Kill
from harness import live_run

if TYPE_CHECKING:
    from scenarios.shop.shop import Shop


async def test_every_promise_holds_when_payments_is_killed_with_orders_in_hand(shop: Shop) -> None:
    """What was delivered but not acknowledged comes again; what was charged is not charged again."""
    await shop.place_orders(count=30)
    async with shop.under(Kill(process="payments")):
        await shop.place_orders(count=50)

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()


async def test_an_order_that_nobody_can_read_is_not_waited_for_for_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API is what was killed: the test hears of it in time, and does not hang."""
    monkeypatch.setattr(live_run, "TRACE_WITHIN_S", 0.5)
    order = await shop.place_order()
    async with shop.under(Kill(process="orders")):
        with pytest.raises(TimeoutError, match=r"could not be read within 0\.5 s"):
            await shop.settled(order)
