"""The projection of orders sits on each payment for fifteen seconds before it stores it.

Payments was done in time and says so; the customer sees PENDING long after the storm is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.jetstream import Delivery
    from system.orders.projection import PaymentProjection

TARGET = "orders"
EXPERIMENT = "payments-partition"
EXPECTED = ("I1",)

_STALL_S = 15.0


def plant() -> None:
    """Wait before storing."""
    from system.orders.projection import PaymentProjection as Planted

    store = Planted.handle

    async def handle(self: PaymentProjection, delivery: Delivery) -> None:
        await asyncio.sleep(_STALL_S)
        await store(self, delivery)

    Planted.handle = handle  # type: ignore[method-assign]  # planting is what this file is for
