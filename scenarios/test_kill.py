"""Payments dies with orders in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.faults.kill import Kill

if TYPE_CHECKING:
    from scenarios.shop.shop import Shop


async def test_every_promise_holds_when_payments_is_killed_with_orders_in_hand(shop: Shop) -> None:
    """What was delivered but not acknowledged comes again; what was charged is not charged again."""
    await shop.place_orders(count=30)
    async with shop.under(Kill(process="payments")):
        await shop.place_orders(count=50)

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
