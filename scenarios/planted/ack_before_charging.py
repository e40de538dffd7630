"""Payments acknowledges an order as soon as it has read it, and charges afterwards.

If it dies in between, the broker believes the order done and delivers it to nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.jetstream import Delivery
    from system.payments.handler import PaymentHandler

TARGET = "payments"
EXPERIMENT = "payments-kill"
EXPECTED = ("I1",)


def plant() -> None:
    """Ack first."""
    from system.payments.handler import PaymentHandler as Planted

    handle_in_order = Planted.handle

    async def handle(self: PaymentHandler, delivery: Delivery) -> None:
        await delivery.ack()
        await handle_in_order(self, delivery)

    Planted.handle = handle  # type: ignore[method-assign]  # planting is what this file is for
