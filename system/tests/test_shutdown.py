"""Stopping and starting under load: nothing that was promised is lost, and it takes less than 15 seconds."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from system.tests.load import load
from system.tests.parts import Broker, ask, wait_until, wait_until_it
from system.tests.shop import FINAL, Shop, running

STOP_WITHIN_S = 15.0
RATE_PER_S = 150


@pytest.mark.parametrize("name", ["orders", "payments", "provider"])
async def test_a_stop_under_load_is_clean_and_costs_no_accepted_order(
    broker: Broker, tmp_path: Path, name: str
) -> None:
    """P11: exit 0 within the time, and whoever starts next carries on."""
    async with running(Shop(tmp_path, broker.url, latency_ms=30)) as shop:
        async with load(shop, rate_per_s=RATE_PER_S) as seen:
            await seen.wait_accepted(100)
            began_s = time.monotonic()
            shop.processes[name].signal(signal.SIGTERM)
            assert await shop.processes[name].exited(within_s=STOP_WITHIN_S) == 0
            took_s = time.monotonic() - began_s
            shop.start(name)
            await shop.ready(name)
            before = len(seen.accepted)
            await seen.wait_accepted(before + 100)

        await shop.all_in(FINAL, seen.accepted, within_s=20.0)

    assert took_s < STOP_WITHIN_S
    assert {money.charges for money in shop.money().values()} == {1}


async def test_a_stopping_service_goes_through_its_steps_in_order(broker: Broker, tmp_path: Path) -> None:
    """P11: not ready, no more requests, requests finished, no more pulls, hands empty, flushed, closed."""
    async with running(Shop(tmp_path, broker.url, latency_ms=30)) as shop:
        async with load(shop, rate_per_s=RATE_PER_S) as seen:
            await seen.wait_accepted(50)
            for name in ("orders", "payments"):
                shop.processes[name].signal(signal.SIGTERM)
            for name in ("orders", "payments"):
                assert await shop.processes[name].exited(within_s=STOP_WITHIN_S) == 0

        for name in ("orders", "payments"):
            text = shop.log_of(name)
            steps = (
                "SIGTERM: stopping",
                "not ready any more",
                "requests are finished",
                "deliveries are finished or given back",
                "acks and publishes are flushed",
                "spans are flushed",
                "stopped",
            )
            places = [text.find(step) for step in steps]
            assert -1 not in places, f"{name} did not say {steps[places.index(-1)]!r}:\n{text}"
            assert places == sorted(places), text


async def test_what_a_stopping_payments_had_prefetched_is_taken_up_by_its_sister_at_once(
    broker: Broker, tmp_path: Path
) -> None:
    """P11: given back, not left to AckWait: here that is a minute, and the test does not wait for one."""
    environment = {"PAYMENTS_ACK_WAIT_S": "60"}
    shop = Shop(tmp_path, broker.url, latency_ms=50, environment=environment, replicas={"payments": 2})
    async with running(shop):
        async with load(shop, rate_per_s=RATE_PER_S) as seen:
            await seen.wait_accepted(150)
            shop.processes["payments"].signal(signal.SIGTERM)
            assert await shop.processes["payments"].exited(within_s=STOP_WITHIN_S) == 0
            before = len(seen.accepted)
            await seen.wait_accepted(before + 50)

        await shop.all_in(FINAL, seen.accepted, within_s=20.0)

    assert {money.charges for money in shop.money().values()} == {1}


async def test_two_replicas_of_payments_share_the_work(broker: Broker, tmp_path: Path) -> None:
    """P12: both charge, and nobody is charged by both."""
    async with running(Shop(tmp_path, broker.url, latency_ms=20, replicas={"payments": 2})) as shop:
        async with load(shop, rate_per_s=RATE_PER_S) as seen:
            await seen.wait_accepted(200)
        await shop.all_in(FINAL, seen.accepted, within_s=20.0)
        shares = [await shop.metric("payments_total", name) for name in ("payments", "payments-2")]

    assert min(shares) > 0
    assert {money.charges for money in shop.money().values()} == {1}


async def test_a_second_signal_ends_a_process_at_once(broker: Broker, tmp_path: Path) -> None:
    """P11: whoever asks twice does not want to wait for a provider that never answers."""
    async with running(Shop(tmp_path, broker.url)) as shop:
        await shop.habits(silent=True)
        await shop.place("o1")
        payments = shop.processes["payments"]
        await wait_until_charging(shop)
        payments.signal(signal.SIGTERM)
        await wait_until(lambda: "SIGTERM: stopping" in shop.log_of("payments"), what="payments stopping")
        began_s = time.monotonic()
        payments.signal(signal.SIGTERM)
        code = await payments.exited(within_s=2.0)

    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began_s < 2.0


async def wait_until_charging(shop: Shop) -> None:
    """Return when payments has an order in its hands."""

    async def is_charging() -> bool:
        return await shop.metric("in_hand", "payments") >= 1

    await wait_until_it(is_charging, what="payments having an order in its hands")


@pytest.mark.parametrize(
    "order",
    [("orders", "payments", "provider"), ("provider", "orders", "payments"), ("payments", "provider", "orders")],
    ids="-".join,
)
async def test_the_processes_may_start_in_any_order(broker: Broker, tmp_path: Path, order: tuple[str, ...]) -> None:
    """P12: each waits for what is not there yet, the broker included."""
    broker.stop()
    shop = Shop(tmp_path, broker.url)
    try:
        for name in order:
            shop.start(name)
        await wait_until(lambda: "not there yet" in shop.log_of(order[0] if order[0] != "provider" else order[1]))
        await broker.start()
        await shop.ready()
        assert (await shop.place("o1")).status == 202
        await shop.all_in("PAID", ["o1"], within_s=10.0)
    finally:
        shop.kill()


async def test_while_it_stops_orders_says_that_it_is_not_ready(broker: Broker, tmp_path: Path) -> None:
    """P12: whoever routes requests by readiness sends none to a process that goes away."""
    async with running(Shop(tmp_path, broker.url)) as shop:
        shop.processes["orders"].signal(signal.SIGTERM)

        statuses = []
        while shop.processes["orders"].exit_code is None:
            try:
                statuses.append((await ask(shop.ports["orders"], "GET", "/readyz")).status)
            except (OSError, EOFError):
                break

    assert 200 not in statuses[1:]
