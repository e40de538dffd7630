"""The projection of orders sits on payments for fifteen seconds before it stores them.

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

_STALL_S = 15.0


def plant() -> None:
    """Wait before storing."""
    from system.orders.projection import PaymentProjection as Planted

    store = Planted.apply

    async def apply(self: PaymentProjection, items: Sequence[PaymentProcessed]) -> None:
        await asyncio.sleep(_STALL_S)
        await store(self, items)

    Planted.apply = apply  # type: ignore[method-assign]  # planting is what this file is for
