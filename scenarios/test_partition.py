"""Payments cannot hear its broker, or the provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.faults.partition import Partition
from scenarios.shop.invariants import no_double_charge, zero_dropped_orders

if TYPE_CHECKING:
    from scenarios.shop.shop import Shop


async def test_no_order_is_dropped_and_nobody_charged_twice_when_payments_is_cut_off_from_its_broker(
    shop: Shop,
) -> None:
    """The money moved, but neither the outcome nor the ack got out: redelivery must find the charge, not repeat it."""
    await shop.place_orders(count=30)
    async with shop.under(Partition(link="payments->nats")):
        await shop.place_orders(count=250)

    judgement = await shop.judge(zero_dropped_orders, no_double_charge)

    assert judgement.holds, judgement.explain()


async def test_no_order_is_dropped_and_nobody_charged_twice_when_payments_is_cut_off_from_its_provider(
    shop: Shop,
) -> None:
    """Money moved whose answers are lost, and the breaker stays open after the heal: that costs time, nothing else."""
    await shop.place_orders(count=30)
    async with shop.under(Partition(link="payments->provider")):
        await shop.place_orders(count=150)

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
    assert judgement.outcomes == {"ok": 180}, "orders are taken all the while"
