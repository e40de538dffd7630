"""Payments as it runs: `python -m system.payments` with a real broker, a real provider and a real database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from system.database import Statement, open_database
from system.metrics import Metrics
from system.payments.retries import ATTEMPTS_MAX
from system.payments.store import MIGRATIONS
from system.settings import PostgresLocation
from system.tests.parts import Broker, ask, free_port, wait_until, wait_until_it
from system.tests.payments_alone import SECRET, Alone, alone
from system.tests.spans import Spans

BREAKER = {"PAYMENTS_BREAKER_OPEN_S": "1", "PROVIDER_TIMEOUT_S": "0.2"}


@pytest_asyncio.fixture
async def world(broker: Broker, tmp_path: Path) -> AsyncIterator[Alone]:
    """Nobody is started yet."""
    async with alone(tmp_path, broker.url) as world:
        yield world


@pytest_asyncio.fixture
async def impatient(broker: Broker, tmp_path: Path) -> AsyncIterator[Alone]:
    """The same, with a breaker that opens for a second only."""
    async with alone(tmp_path, broker.url, BREAKER) as world:
        yield world


async def rows(url: str) -> dict[str, int]:
    """How many rows of each status there are in a PostgreSQL database."""
    async with open_database(
        PostgresLocation(url=url), migrations=MIGRATIONS, name="payments", tracer=Spans().tracer, metrics=Metrics()
    ) as database:
        found = await database.read(Statement("SELECT status, count(*) FROM payments GROUP BY status"))
        return {str(status): int(str(count)) for status, count in found}


async def test_payments_runs_on_postgresql(world: Alone, postgres_url: str) -> None:
    """Charges, declines, refunds and a clean stop, as on SQLite."""
    await world.begin("provider")
    await world.begin("payments", PAYMENTS_DB=postgres_url)
    await world.place(*[f"o{n}" for n in range(50)])
    await world.place("declined", amount_minor=1213)
    await world.all_announced(51)
    await world.cancel("o7")
    await world.all_acked()

    assert await world.statuses() == {"PAID": 50, "DECLINED": 1, "REFUNDED": 1}
    assert await world.stop("payments") == 0
    assert await rows(postgres_url) == {"PAID": 49, "DECLINED": 1, "REFUNDED": 1}


@pytest.mark.parametrize("tables", ["shared", "own"])
async def test_replicas_share_the_work_and_nobody_is_charged_by_both(
    world: Alone, tables: str, request: pytest.FixtureRequest
) -> None:
    """P12: with one PostgreSQL for both, or with a file each; also when messages come twice."""
    database = {"PAYMENTS_DB": request.getfixturevalue("postgres_url")} if tables == "shared" else {}
    await world.begin("provider")
    await world.habits(latency={"mean_ms": 10})
    world.start("payments-1", **database)
    world.start("payments-2", **database)
    await world.ready("payments-1", "payments-2")
    orders = [f"o{n}" for n in range(600)]
    await world.place(*orders)
    for order in orders[:20]:
        await world.place(order, message_id=f"double:{order}")
    await world.all_acked()

    assert world.ledger() == {f"charge {order}": 1 for order in orders}
    assert await world.statuses() == {"PAID": 600}
    shares = [await world.metric("deliveries_total", name) for name in ("payments-1", "payments-2")]
    assert min(shares) > 0


async def test_a_silent_provider_is_left_in_peace_and_every_order_is_paid_afterwards(impatient: Alone) -> None:
    """P15: more than five time-outs in a row open the breaker; while it is open nothing is asked and nothing pulled."""
    await impatient.begin("provider", "payments")
    await impatient.habits(silent=True)
    await impatient.place(*[f"o{n}" for n in range(40)])

    async def is_open() -> bool:
        return await impatient.metric("breaker_state") == 2

    await wait_until_it(is_open, what="the breaker open")
    asked = await impatient.metric("charges_total", "provider", "silent")
    await impatient.place(*[f"late{n}" for n in range(10)])

    async def is_half_open() -> bool:
        return await impatient.metric("breaker_opened_total") == 2

    assert asked >= 6
    await wait_until_it(is_half_open, what="the breaker opening again after its probes")
    probes = await impatient.metric("charges_total", "provider", "silent") - asked
    await impatient.habits()
    await impatient.all_acked(within_s=20.0)

    assert 1 <= probes <= 3
    assert await impatient.metric("breaker_state") == 0
    assert await impatient.statuses() == {"PAID": 50}
    assert set(impatient.ledger().values()) == {1}
    assert await impatient.metric("dead_letters_total") == 0
    log = impatient.log_of("payments")
    assert "closed -> open, 6 calls in a row failed" in log
    assert "half-open -> closed, 3 probes in a row succeeded" in log


async def test_while_the_breaker_is_open_payments_stays_ready_and_stops_cleanly(impatient: Alone) -> None:
    """P11, P15: doing nothing is the work then."""
    await impatient.begin("provider")
    await impatient.begin("payments", PAYMENTS_BREAKER_OPEN_S="60")
    impatient.kill("provider")
    await impatient.place(*[f"o{n}" for n in range(20)])

    async def is_open() -> bool:
        return await impatient.metric("breaker_state") == 2 and await impatient.metric("in_hand") == 0

    async def has_stopped_pulling() -> bool:
        return await impatient.pulls_waiting() == 0

    await wait_until_it(is_open, what="the breaker open and nothing in hand")
    await wait_until_it(has_stopped_pulling, what="no pull request at the broker")
    delivered = await impatient.metric("deliveries_total")
    await impatient.place("late")
    assert await impatient.pulls_waiting() == 0
    assert await impatient.metric("deliveries_total") == delivered
    assert (await ask(impatient.ports["payments"], "GET", "/readyz")).status == 200
    began_s = time.monotonic()
    assert await impatient.stop("payments") == 0
    assert time.monotonic() - began_s < 5.0


async def test_a_stop_does_not_wait_for_a_provider_that_never_answers(world: Alone) -> None:
    """P11: exit 0 within the time; whoever starts next asks again under the same keys."""
    await world.begin("provider")
    await world.begin("payments", PROVIDER_TIMEOUT_S="60")
    await world.habits(charge_then_timeout_rate=1.0)
    await world.place(*[f"o{n}" for n in range(30)])
    await wait_until(lambda: len(world.ledger()) == 30, what="every order charged")
    began_s = time.monotonic()
    assert await world.stop("payments") == 0
    assert time.monotonic() - began_s < 15.0

    await world.habits()
    await world.begin("payments")
    await world.all_acked()
    assert set(world.ledger().values()) == {1}
    assert await world.statuses() == {"PAID": 30}


async def test_a_payment_of_which_only_a_webhook_told_is_announced_without_another_charge(
    broker: Broker, tmp_path: Path
) -> None:
    """The answers to one delivery are lost, all of them; the provider tells by itself, twice."""
    port = free_port()
    environment = {
        "PROVIDER_TIMEOUT_S": "0.2",
        "PROVIDER_WEBHOOK_URL": f"http://127.0.0.1:{port}/webhooks/provider",
        "PROVIDER_WEBHOOK_SECRET": SECRET,
    }
    async with alone(tmp_path, broker.url, environment) as world:
        world.ports["payments"] = port
        await world.begin("provider", "payments")
        await world.habits(charge_then_timeout_rate=1.0, duplicate_webhook_rate=1.0)
        await world.place("o1")
        await wait_until(lambda: bool(world.ledger()), what="the charge")
        await world.all_acked()

        assert world.ledger() == {"charge o1": 1}
        assert await world.statuses() == {"PAID": 1}
        assert await world.metric("charge_attempts_total") == ATTEMPTS_MAX
        assert await world.metric("webhooks_received_total", label="captured") >= 2
        assert (await world.post("/webhooks/provider", b"{}", {"provider-signature": "0"})).status == 401


async def test_a_message_that_nobody_can_handle_is_kept_and_hinders_no_other(world: Alone) -> None:
    """P14: it is in the dead letters, with why."""
    await world.begin("provider", "payments")
    await world.place("o 1")
    await world.place("o2")
    await world.all_acked()

    assert await world.statuses() == {"PAID": 1}
    assert await world.metric("dead_letters_total") == 1
    assert world.ledger() == {"charge o2": 1}


async def test_a_stop_finishes_what_is_in_hand_and_goes_through_its_steps_in_order(world: Alone) -> None:
    """P11: and whoever starts next has nothing to repeat."""
    await world.begin("provider", "payments")
    await world.habits(latency={"mean_ms": 300})
    await world.place(*[f"o{n}" for n in range(100)])

    async def is_charging() -> bool:
        return await world.metric("in_hand") > 0

    await wait_until_it(is_charging, what="orders in hand")
    assert await world.stop("payments") == 0
    steps = (
        "SIGTERM: stopping",
        "not ready any more",
        "requests are finished",
        "deliveries are finished or given back",
        "acks and publishes are flushed",
        "spans are flushed",
        "stopped",
    )
    log = world.log_of("payments")
    places = [log.find(step) for step in steps]
    assert -1 not in places, log
    assert places == sorted(places)

    charged = len(world.ledger())
    assert charged == (await world.statuses()).total() > 0
    await world.habits()
    await world.begin("payments")
    await world.all_acked()
    assert await world.statuses() == {"PAID": 100}
    assert await world.metric("charge_attempts_total") == 100 - charged


async def test_a_database_that_cannot_be_used_is_one_sentence_and_exit_1(world: Alone) -> None:
    """And a setting that makes no sense is exit 64."""
    world.start("payments", PAYMENTS_DB="/nowhere/payments.db")
    assert await world.processes["payments"].exited() == 1
    assert "set PAYMENTS_DB" in world.log_of("payments").splitlines()[-1]

    world.start("payments-2", PAYMENTS_BREAKER_FAILURES="many")
    assert await world.processes["payments-2"].exited() == 64


async def test_payments_may_start_before_its_provider_and_its_broker(broker: Broker, tmp_path: Path) -> None:
    """P12: it waits for both, and says that it is not ready."""
    async with alone(tmp_path, broker.url) as world:
        broker.stop()
        world.start("payments")
        await wait_until(lambda: "not there yet" in world.log_of("payments"), what="payments missing its broker")
        assert (await ask(world.ports["payments"], "GET", "/readyz")).status == 503
        await broker.start()
        await world.ready("payments")
        async with asyncio.timeout(10):
            await world.place("o1")
        await world.begin("provider")
        await world.all_acked(within_s=30.0)

        assert await world.statuses() == {"PAID": 1}
