"""Finding orders between their acceptance and their commit, with a table that answers when it is told to."""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec
import pytest

from system.announcing import Announcer
from system.jetstream import Connection, PubAck
from system.metrics import Metrics
from system.orders.catching_up import CatchingUp
from system.orders.intake import Intake, NewOrder, NotYetKnownError
from system.orders.recent import RecentOrders
from system.orders.settling import SettleTimes
from system.orders.store import OrderStore, StoredOrder

ORDER = NewOrder(order_id="o1", is_named=True, customer_id="c1", amount_minor=1250, currency="EUR")


class SlowTable(OrderStore):
    """A table whose answers are on their way for a while. row: what it holds when it is asked."""

    def __init__(self, row: StoredOrder | None = None) -> None:
        self.row = row
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def find(self, order_id: str) -> StoredOrder | None:  # noqa: ARG002 - it holds one at most
        """What it held when it was asked."""
        row = self.row
        self.asked.set()
        await self.may_answer.wait()
        return row


class PromptAnnouncer(Announcer):
    """Everything is stored at once."""

    def __init__(self) -> None:
        self.announced = 0

    async def announce(self, **_event: object) -> PubAck:
        """Done."""
        self.announced += 1
        return PubAck(stream="ORDERS", sequence=self.announced, duplicate=False)


def intake_over(
    table: SlowTable, recent: RecentOrders, announcer: PromptAnnouncer, *, is_caught_up: bool = True
) -> Intake:
    """An intake with no broker behind it."""
    catching_up = CatchingUp(is_over=is_caught_up)
    return Intake(cast("Connection", None), announcer, table, recent, SettleTimes(Metrics()), catching_up)


async def test_while_old_orders_are_still_being_read_only_an_id_of_our_own_is_taken() -> None:
    """P6: under a key that a customer chose there may be another order, which nobody remembers yet."""
    announcer = PromptAnnouncer()
    intake = intake_over(SlowTable(), RecentOrders(), announcer, is_caught_up=False)

    with pytest.raises(NotYetKnownError):
        await intake.accept(ORDER)
    assert announcer.announced == 0
    assert await intake.accept(msgspec.structs.replace(ORDER, is_named=False)) == "PENDING"
    assert announcer.announced == 1


async def test_an_order_that_is_committed_while_the_table_is_asked_is_found() -> None:
    """P7: the answer left the table before the commit and arrives after it, when nobody remembers the order here."""
    table, recent, announcer = SlowTable(), RecentOrders(), PromptAnnouncer()
    intake = intake_over(table, recent, announcer)
    await intake.accept(ORDER)
    table.asked.clear()
    table.may_answer.clear()

    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(intake.find("o1"))
        await table.asked.wait()
        table.row = StoredOrder("o1", "c1", 1250, "EUR", "PENDING", 1)
        recent.committed("o1")
        table.may_answer.set()

    found = looking.result()
    assert found is not None
    assert (found.customer_id, found.status) == ("c1", "PENDING")


async def test_an_order_whose_payment_overtook_it_is_shown_whole() -> None:
    """P7: the status is the table's, the rest is what was accepted here."""
    table, recent = SlowTable(StoredOrder("o1", None, 1250, "EUR", "PAID", None, 8, "ch_1")), RecentOrders()
    table.row, paid = None, table.row
    intake = intake_over(table, recent, PromptAnnouncer())
    await intake.accept(ORDER)
    table.row = paid
    found = await intake.find("o1")

    assert found is not None
    assert (found.customer_id, found.status, found.payment_id, found.settled_at_ns) == ("c1", "PAID", "ch_1", 8)
    assert found.created_at_ns is not None


async def test_an_order_that_is_known_is_not_announced_again() -> None:
    """P6: beyond the broker's memory the table is what remembers."""
    announcer = PromptAnnouncer()
    intake = intake_over(SlowTable(StoredOrder("o1", "c1", 1250, "EUR", "PAID", 1, 2)), RecentOrders(), announcer)

    assert await intake.accept(ORDER) == "PAID"
    assert announcer.announced == 0
