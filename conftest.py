"""Fixtures of this repository's own tests; what others can use too is in `harness.plugin`."""

from __future__ import annotations

import pytest

from harness.live_run import LiveRun
from scenarios.shop.shop import Shop

pytest_plugins = ["pytester"]


@pytest.fixture
def shop(live_run: LiveRun) -> Shop:
    """Return the shipped order and payment system, running behind real proxies."""
    return Shop(live_run)
