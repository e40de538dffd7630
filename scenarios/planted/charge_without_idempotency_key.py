"""Payments charges without a lasting idempotency key: every attempt brings a key of its own.

A payments that died between the charge and the record of it asks again, and the provider cannot tell that it has seen
this order.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.events import OrderCreated
    from system.payments.provider_client import Bill, ProviderClient

TARGET = "payments"
EXPERIMENT = "payments-kill"
EXPECTED = ("I2",)


def plant() -> None:
    """Draw the key anew each time it is asked for."""
    from system.payments.provider_client import ProviderClient as Planted

    def fresh_key(self: ProviderClient, order: OrderCreated | Bill) -> str:
        del self, order
        return uuid.uuid4().hex

    Planted.idempotency_key = fresh_key  # type: ignore[method-assign]  # planting is what this file is for
