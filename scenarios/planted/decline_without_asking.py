"""Payments declines every third order without asking the provider: a fallback that spares a slow provider.

No money moves, no state contradicts another; a customer is told that the card said no, and nobody asked it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from system.events import OrderCreated
    from system.payments.handler import PaymentHandler
    from system.payments.provider_client import ChargeOutcome

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I3",)

_EVERY = 3


def plant() -> None:
    """Say no for the provider."""
    from system.payments.handler import PaymentHandler as Planted
    from system.payments.provider_client import Declined

    charge_as_is = Planted.charge

    async def decline() -> ChargeOutcome:
        return Declined(reason="the card was declined")

    def charge(self: PaymentHandler, order: OrderCreated) -> Awaitable[ChargeOutcome]:
        return charge_as_is(self, order) if order.amount_minor % _EVERY else decline()

    Planted.charge = charge  # type: ignore[method-assign]  # planting is what this file is for
