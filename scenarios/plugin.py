"""The shop as a pytest fixture, wherever the package is installed: `shop` puts words to `live_run`.

It needs the shop to be the system under test: `system = "scenarios.shop:SHOP"` under [tool.stormproof] in
pyproject.toml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.live_run import LiveRun
    from scenarios.shop.shop import Shop


@pytest.fixture
def shop(live_run: LiveRun) -> Shop:
    """Return the shipped order and payment system, running behind real proxies."""
    # Every pytest run of whoever has the package loads this module: it must cost nothing there.
    from scenarios.shop.shop import Shop  # noqa: PLC0415 - see above

    return Shop(live_run)
