"""Whoever installs the package has the shop as a fixture, in an empty project."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.environment.cache import CACHE_VARIABLE, cache_directory

if TYPE_CHECKING:
    import pytest

# Now: pytester moves HOME, below which the cache lies by default, and nothing is to be built twice.
CACHE = cache_directory()

EXAMPLE = """
from chaos.faults.partition import Partition
from scenarios.shop.invariants import no_double_charge, zero_dropped_orders


async def test_no_order_is_dropped_and_nobody_charged_twice(shop):
    await shop.place_orders(count=30)
    async with shop.under(Partition(link="payments->nats")):
        await shop.place_orders(count=100)

    judgement = await shop.judge(zero_dropped_orders, no_double_charge)

    assert judgement.holds, judgement.explain()
"""


def test_a_strangers_test_storms_the_shop(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of configuration names the system under test."""
    for name in [name for name in os.environ if name.startswith("PYTEST_ADDOPTS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(CACHE_VARIABLE, str(CACHE))
    pytester.makepyprojecttoml(
        """
        [tool.stormproof]
        system = "scenarios.shop:SHOP"

        [tool.pytest.ini_options]
        asyncio_mode = "auto"
        """
    )
    pytester.makepyfile(EXAMPLE)

    ended = pytester.runpytest_subprocess("-q", "--require-backends", "--runs-dir", "runs")

    ended.assert_outcomes(passed=1)
    assert [path.name for path in pytester.path.glob("runs/2*/evidence.duckdb")] == ["evidence.duckdb"]
