"""Old and new versions of the services side by side, and messages that no version can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenarios.shop.versions import a_status_of_the_next_version, an_order_of_the_first_version
from scenarios.shop.versions import an_order_of_the_next_version as newer

if TYPE_CHECKING:
    from scenarios.shop.shop import Shop


async def test_orders_of_an_older_and_of_a_newer_producer_are_charged_like_our_own(shop: Shop) -> None:
    """One knows no minor units and no currency; the other sends fields that nobody here has heard of."""
    await shop.place_orders(count=5)
    async with shop.another_version() as other:
        await other.publish("orders.created", an_order_of_the_first_version("old-1", euros=12.5), message_id="old-1")
        await other.publish("orders.created", newer("new-1", cents=700), message_id="new-1")

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
    assert shop.states("old-1", "new-1") == ["PAID", "PAID"]
    assert shop.charged("old-1", "new-1") == [1250, 700]


async def test_a_status_of_a_newer_version_changes_nothing_and_is_kept_for_those_who_know_it(shop: Shop) -> None:
    """It is never taken for paid, or for anything else; nor is it lost."""
    order = await shop.place_order()
    before = await shop.settled(order)
    async with shop.another_version() as other:
        status = a_status_of_the_next_version(order.key)
        await other.publish("payments.processed", status, message_id="new-status", caused_by=order)

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
    assert shop.states(order.key) == [before]
    assert shop.dead_letters() == ["deadletters.payment-projection"]


async def test_bytes_that_are_no_event_stop_nobody_and_are_kept(shop: Shop) -> None:
    """Each consumer of the stream gives them up once; the orders behind them go on."""
    async with shop.another_version() as other:
        await other.publish("orders.created", b"\xff\xffno event at all", message_id="poison")
    await shop.place_orders(count=20)

    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
    assert shop.dead_letters() == ["deadletters.order-projection", "deadletters.payment-processor"]
