"""Payments says that a paid order was refunded, and never asks the provider to.

Everything looks undone, and the customer waits for money that nobody sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.events import OrderCancelled
    from system.payments.cancellation import CancellationHandler
    from system.payments.provider_client import Bill, RefundOutcome
    from system.payments.store import Payment

TARGET = "payments"
EXPERIMENT = "cancel-race"
EXPECTED = ("I3",)


def plant() -> None:
    """Make the refund up where there is a charge to refund."""
    from system.payments.cancellation import CancellationHandler as Planted
    from system.payments.provider_client import Refunded

    paid: dict[str, str] = {}
    find_it, ask = Planted.find, Planted.undo

    async def find(self: CancellationHandler, cancellation: OrderCancelled) -> Payment | None:
        payment = await find_it(self, cancellation)
        if payment is not None and payment.status == "PAID":
            paid[payment.order_id] = payment.charge_id
        return payment

    async def undo(self: CancellationHandler, bill: Bill) -> RefundOutcome:
        charge_id = paid.get(bill.order_id)
        if charge_id is None:
            return await ask(self, bill)
        return Refunded(refund_id="re_made_up", charge_id=charge_id)

    Planted.find = find  # type: ignore[method-assign]  # planting is what this file is for
    Planted.undo = undo  # type: ignore[method-assign]  # as above
