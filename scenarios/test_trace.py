"""One order, followed through all three processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenarios.shop.shop import Shop


async def test_one_order_is_one_connected_trace_from_the_customer_to_the_ledger_and_back(shop: Shop) -> None:
    """Each hop passes its context on, over HTTP and over the broker alike."""
    order = await shop.place_order()

    trace = await shop.trace_of(order)

    trace.must_be_connected()
    trace.must_contain(
        ("orders", "POST /orders"),
        ("orders", "publish orders.created"),
        ("payments", "process orders.created"),
        ("payments", "POST /charges"),
        ("provider", "POST /charges"),
        ("payments", "publish payments.processed"),
        ("orders", "process payments.processed"),
    )
    assert trace.services == {"orders", "payments", "provider"}
