"""Payments dies, really (SIGKILL), at each step between charge, row, announcement and ack (P2, P9, P13).

The redelivery does the rest: one charge, one refund, one announcement of each; whether the table is the old one, a new
one (the disk was lost), or that of another replica.
"""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from system.tests.dying import STEPS
from system.tests.parts import Broker, wait_until
from system.tests.payments_alone import Alone, alone

OF_ORDERS = [step for step in STEPS if "undo" not in step and "cancel" not in step]
OF_CANCELLATIONS = [step for step in STEPS if step not in OF_ORDERS]


@pytest_asyncio.fixture
async def world(broker: Broker, tmp_path: Path) -> AsyncIterator[Alone]:
    """A provider that works."""
    async with alone(tmp_path, broker.url) as world:
        await world.begin("provider")
        yield world


async def died_at(world: Alone, step: str) -> None:
    """Payments came to this step, and to no other."""
    world.start("payments", "tests.dying", DYING_STEP=step)
    assert await world.processes["payments"].exited() == -signal.SIGKILL


@pytest.mark.parametrize("table", ["payments.db", "new.db"], ids=["same-table", "lost-table"])
@pytest.mark.parametrize("step", OF_ORDERS)
async def test_payments_dies_at_a_step_of_a_payment(world: Alone, step: str, table: str) -> None:
    """One charge and one announcement, by the process that starts next."""
    await world.place("o1")
    await died_at(world, step)
    charges_before = world.ledger()
    await world.begin("payments", PAYMENTS_DB=str(world.directory / table))
    await world.all_acked()

    assert charges_before == ({} if step == "before-asking" else {"charge o1": 1})
    assert world.ledger() == {"charge o1": 1}
    assert await world.statuses() == {"PAID": 1}


@pytest.mark.parametrize("step", ["recorded", "announced", "acked"])
async def test_a_payment_whose_end_is_recorded_is_not_asked_for_again(world: Alone, step: str) -> None:
    """Not even when there is no provider any more."""
    await world.place("o1")
    await died_at(world, step)
    world.kill("provider")
    await world.begin("payments")
    await world.all_acked()

    assert await world.statuses() == {"PAID": 1}
    assert await world.metric("charge_attempts_total") == 0


async def test_payments_dies_while_it_waits_for_an_answer_that_never_comes(world: Alone) -> None:
    """The money moved, and nobody here knows."""
    await world.habits(charge_then_timeout_rate=1.0)
    await world.place("o1")
    await world.begin("payments")
    await wait_until(lambda: bool(world.ledger()), what="the charge in the ledger")
    world.kill("payments")
    await world.habits()
    await world.begin("payments")
    await world.all_acked()

    assert world.ledger() == {"charge o1": 1}
    assert await world.statuses() == {"PAID": 1}


@pytest.mark.parametrize("table", ["payments.db", "new.db"], ids=["same-table", "lost-table"])
@pytest.mark.parametrize("step", OF_CANCELLATIONS)
async def test_payments_dies_at_a_step_of_a_refund(world: Alone, step: str, table: str) -> None:
    """One refund and one announcement of it, by the process that starts next."""
    await world.begin("payments")
    await world.place("o1")
    await world.all_acked()
    await world.stop("payments")
    await world.cancel("o1")
    await died_at(world, step)
    before = world.ledger()
    await world.begin("payments", PAYMENTS_DB=str(world.directory / table))
    await world.all_acked()

    assert before == ({"charge o1": 1} if step == "before-undoing" else {"charge o1": 1, "refund o1": 1})
    assert world.ledger() == {"charge o1": 1, "refund o1": 1}
    assert await world.statuses() == {"PAID": 1, "REFUNDED": 1}


@pytest.mark.parametrize("step", OF_CANCELLATIONS)
async def test_payments_dies_at_a_step_of_ruling_out_a_charge(world: Alone, step: str) -> None:
    """The order comes after its cancellation, and is never charged."""
    await world.cancel("o1")
    await died_at(world, step)
    await world.begin("payments")
    await world.all_acked()
    await world.place("o1")
    await world.all_acked()

    assert world.ledger() == {"void o1": 1}
    assert await world.statuses() == {"CANCELLED": 1}


async def test_another_replica_takes_up_what_a_dead_one_had_in_hand(world: Alone) -> None:
    """P12: with a table of its own, which knows nothing: the provider's key keeps it from charging twice."""
    await world.place(*[f"o{n}" for n in range(30)])
    await died_at(world, "announced")
    await world.begin("payments-2")
    await world.all_acked()

    assert set(world.ledger().values()) == {1}
    assert await world.statuses() == {"PAID": 30}


async def test_a_shop_full_of_orders_survives_being_killed_again_and_again(world: Alone) -> None:
    """Wherever it is just then; the ledger has each order once."""
    await world.habits(latency={"mean_ms": 20, "jitter_ms": 20})
    orders = [f"o{n}" for n in range(300)]
    await world.place(*orders)
    for done in (20, 80, 150, 220):
        await world.begin("payments")
        await world.all_announced(done)
        world.kill("payments")
    await world.begin("payments")
    await world.all_acked(within_s=20.0)

    assert world.ledger() == {f"charge {order}": 1 for order in orders}
    announced = await world.announced()
    assert {event.order_id for event in announced} == set(orders)
    assert len(announced) == len(orders), json.dumps([event.order_id for event in announced])
