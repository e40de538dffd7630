"""Payments approves every tenth order without asking the provider: a fallback that somebody forgot.

The customer is told it is paid, and no money ever moves.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.events import OrderCreated
    from system.payments.handler import PaymentHandler
    from system.payments.provider_client import ChargeOutcome

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I3",)

_EVERY = 10


def plant() -> None:
    """Answer some of the charges ourselves."""
    from system.payments.handler import PaymentHandler as Planted
    from system.payments.provider_client import Captured as Approved

    ask = Planted.charge
    numbers = itertools.count(1)

    async def charge(self: PaymentHandler, order: OrderCreated) -> ChargeOutcome:
        if next(numbers) % _EVERY == 0:
            return Approved(charge_id="approved", replayed=False)
        return await ask(self, order)

    Planted.charge = charge  # type: ignore[method-assign]  # planting is what this file is for
