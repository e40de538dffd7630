"""The projection of orders sits on payments for longer than orders are given, before it stores them.

Payments was done in time and says so; the customer sees PENDING long after the storm is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from system.events import PaymentProcessed
    from system.orders.projection import PaymentProjection

TARGET = "orders"
EXPERIMENT = "payments-partition"
EXPECTED = ("I1",)

_STALL_S = 35.0
"""More than I1's 30 s, which this process cannot import: it is the system's, and knows of no harness."""


def plant() -> None:
    """Wait before storing."""
    from system.orders.projection import PaymentProjection as Planted

    store = Planted.apply

    async def apply(self: PaymentProjection, items: Sequence[PaymentProcessed]) -> None:
        await asyncio.sleep(_STALL_S)
        await store(self, items)

    Planted.apply = apply  # type: ignore[method-assign]  # planting is what this file is for
