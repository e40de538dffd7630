"""Payments acknowledges the cancellation of an order that is paid already, and does nothing.

The customer was told that the order is cancelled, and the money stays where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.jetstream import Delivery
    from system.payments.cancellation import CancellationHandler

TARGET = "payments"
EXPERIMENT = "cancel-race"
EXPECTED = ("I18",)


def plant() -> None:
    """Ack and look away."""
    from system.payments.cancellation import CancellationHandler as Planted

    carry_out = Planted.handle

    async def handle(self: CancellationHandler, delivery: Delivery) -> None:
        payment = await self.find(self.read(delivery))
        # Only what comes for the first time: a redelivery may be of a refund that was made and not told.
        if delivery.times_delivered == 1 and payment is not None and payment.status == "PAID":
            await delivery.ack()
            return
        await carry_out(self, delivery)

    Planted.handle = handle  # type: ignore[method-assign]  # planting is what this file is for
