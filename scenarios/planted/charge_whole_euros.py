"""Payments charges whole euros, rounded up: somebody mistook the unit.

Every order is charged once, and most of them for too much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from system.events import OrderCreated
    from system.jetstream import Delivery
    from system.payments.handler import PaymentHandler

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I3", "I4")

_CENTS = 100


def plant() -> None:
    """Round the amount up when the order is read."""
    from system.payments.handler import PaymentHandler as Planted

    read_as_is = Planted.read

    def read(self: PaymentHandler, delivery: Delivery) -> OrderCreated:
        order = read_as_is(self, delivery)
        return replace(order, amount_minor=-(-order.amount_minor // _CENTS) * _CENTS)

    Planted.read = read  # type: ignore[method-assign]  # planting is what this file is for
