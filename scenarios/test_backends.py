"""The same promises, wherever broker, proxies and database come from."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaos.faults.partition import Partition
from harness.environment.choice import CONTAINER, EXTERNAL, BackendChoice
from harness.environment.tests.backends import ensure_had, somebody
from harness.errors import EnvironmentFailedError, UsageError
from harness.live_run import live_run
from scenarios.shop import SHOP
from scenarios.shop.shop import Shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")

PLAIN = BackendChoice()
VARIANTS = {
    "containers": BackendChoice(name=CONTAINER),
    "tls": BackendChoice(tls=True),
    "postgres": BackendChoice(postgres=True),
    "containers-with-tls-and-postgres": BackendChoice(name=CONTAINER, tls=True, postgres=True),
}


@asynccontextmanager
async def shop_on(
    choice: BackendChoice, directory: RunDirectory, seed: int, request: pytest.FixtureRequest
) -> AsyncIterator[Shop]:
    """Start the shop there, or skip by name."""
    try:
        await ensure_had(PLAIN if choice.is_external else choice)
    except EnvironmentFailedError as error:
        if request.config.getoption("--require-backends"):
            pytest.fail(f"backend {choice.name} is required and cannot be had: {error}")
        pytest.skip(f"backend {choice.name} cannot be had: {error}")
    async with live_run(SHOP, directory, seed=seed, choice=choice) as run:
        yield Shop(run)


@pytest.mark.parametrize("choice", VARIANTS.values(), ids=VARIANTS)
async def test_every_promise_holds_when_payments_is_cut_off_the_broker(
    choice: BackendChoice, run_directory: RunDirectory, chaos_seed: int, request: pytest.FixtureRequest
) -> None:
    """The broker keeps what payments cannot hear, on every kind of broker."""
    async with shop_on(choice, run_directory, chaos_seed, request) as shop:
        await shop.place_orders(count=30)
        async with shop.under(Partition(link="payments->nats")):
            await shop.place_orders(count=100)

        judgement = await shop.judge()

    assert judgement.holds, judgement.explain()


@pytest.mark.parametrize("link", ["payments->postgres", "orders->postgres"])
async def test_every_promise_holds_when_a_service_is_cut_off_its_database(
    link: str, run_directory: RunDirectory, chaos_seed: int, request: pytest.FixtureRequest
) -> None:
    """What cannot be written down is not acknowledged, and comes again; a customer is told that nobody can tell."""
    async with shop_on(BackendChoice(postgres=True), run_directory, chaos_seed, request) as shop:
        await shop.place_orders(count=100)
        async with shop.under(Partition(link=link)):
            await shop.place_orders(count=50)
        await shop.place_orders(count=100)

        judgement = await shop.judge()

    assert judgement.holds, judgement.explain()


async def test_every_promise_holds_on_somebodys_broker_behind_somebodys_proxies(
    run_directory: RunDirectory, chaos_seed: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With their leave; the streams stay theirs, and so a second run on them is refused."""
    async with somebody(tmp_path / "somebody") as theirs:
        choice = replace(theirs.choice, allowed_faults=frozenset({"partition"}))
        async with shop_on(choice, run_directory, chaos_seed, request) as shop:
            await shop.place_orders(count=30)
            async with shop.under(Partition(link="payments->nats")):
                await shop.place_orders(count=100)

            judgement = await shop.judge()
        with pytest.raises(EnvironmentFailedError, match="the stream ORDERS was written to before this run"):
            async with shop_on(choice, run_directory, chaos_seed, request):
                pytest.fail("it must not come to this")

    assert choice.name == EXTERNAL
    assert judgement.holds, judgement.explain()


async def test_somebodys_broker_is_not_cut_off_without_their_leave(
    run_directory: RunDirectory, chaos_seed: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Refused before anything is harmed, and the run goes on."""
    async with (
        somebody(tmp_path / "somebody") as theirs,
        shop_on(theirs.choice, run_directory, chaos_seed, request) as shop,
    ):
        with pytest.raises(UsageError, match="add --allow-fault partition"):
            async with shop.under(Partition(link="payments->nats")):
                pytest.fail("it must not come to this")
        await shop.place_orders(count=30)
        judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
