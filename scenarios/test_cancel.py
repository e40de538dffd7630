"""Customers change their minds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.faults.kill import Kill

if TYPE_CHECKING:
    from scenarios.shop.shop import Shop


async def test_a_cancelled_order_is_never_charged_or_refunded_once_though_payments_dies(shop: Shop) -> None:
    """The cancellation meets its order before, during and after the charge; killed in between, nothing is half done."""
    await shop.place_and_cancel_orders(count=40)
    async with shop.under(Kill(process="payments")):
        await shop.place_and_cancel_orders(count=120)

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()


async def test_one_cancellation_is_one_connected_trace_from_the_customer_to_the_refund_and_back(shop: Shop) -> None:
    """Undoing is told like doing."""
    order = await shop.place_order()
    while await shop.settled(order) != "PAID":  # some cards are declined
        order = await shop.place_order()
    cancellation = await shop.cancel(order)
    await shop.settled(order, "REFUNDED")

    trace = await shop.trace_of(cancellation)

    trace.must_be_connected()
    trace.must_contain(
        ("orders", "POST /orders/{id}/cancel"),
        ("orders", "publish orders.cancelled"),
        ("payments", "process orders.cancelled"),
        ("payments", "POST /refunds"),
        ("provider", "POST /refunds"),
        ("payments", "publish payments.processed"),
        ("orders", "process payments.processed"),
    )
