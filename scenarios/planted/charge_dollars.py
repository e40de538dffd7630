"""Payments charges dollars for orders in euros: the currency is taken from a default.

Every order is charged once, and over the right number, of the wrong money.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from system.events import OrderCreated
    from system.payments.handler import PaymentHandler
    from system.payments.provider_client import ChargeOutcome

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I4",)


def plant() -> None:
    """Charge in dollars."""
    from system.payments.handler import PaymentHandler as Planted

    charge_as_is = Planted.charge

    def charge(self: PaymentHandler, order: OrderCreated) -> Awaitable[ChargeOutcome]:
        return charge_as_is(self, replace(order, currency="USD"))

    Planted.charge = charge  # type: ignore[method-assign]  # planting is what this file is for
