"""What payments does with an order: charge, record, announce, ack, in this order and never another.

Promises: each step is durable before the next begins, so a crash anywhere in between leads to a redelivery that takes
up where it stopped: before the row it asks for the charge again, under the same idempotency key, and gets the one that
was made; after the row it does not ask; the announcement has the same message id. A decline is an outcome like any
other, and so is a charge that was ruled out by a cancellation. What cannot be done now is handed back by
`system.processing`: an outage of provider, database or broker is never the message's fault.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable

from system import events, telemetry
from system.events import OrderCreated, PaymentStatus
from system.jetstream import Delivery
from system.payments.provider_client import Captured, ChargeOutcome, Declined, Voided
from system.payments.store import Payment
from system.payments.work import PaymentWork, check_id
from system.processing import GiveUpError


class PaymentHandler(PaymentWork):
    """Handles the deliveries of `payment-processor`."""

    async def handle(self, delivery: Delivery) -> None:
        """The whole story of one delivery."""
        order = self.read(delivery)
        payment = await self.find(order)
        if payment is None:
            payment = self.result_of(order, await self.charge(order))
            await self.record(payment)
        if self._outbox.is_due(payment):
            await self.announce(payment)
        await delivery.ack()

    def read(self, delivery: Delivery) -> OrderCreated:
        """The order; `UndecodableError` if these bytes are none."""
        order = events.decode_order_created(delivery.payload)
        telemetry.about_order(order.order_id)
        check_id(order.order_id)
        return order

    async def find(self, order: OrderCreated) -> Payment | None:
        """How charging this order ended, if it has; `GiveUpError` if that was another order under this id."""
        payment = await self.recorded(order.order_id)
        if payment is None:
            return None
        if (payment.amount_minor, payment.currency) != (order.amount_minor, order.currency):
            raise GiveUpError(
                f"order {order.order_id} over {order.amount_minor} {order.currency} is recorded as {payment.status} "
                f"over {payment.amount_minor} {payment.currency}"
            )
        if payment.status == PaymentStatus.REFUNDED.value:
            # The refund is announced by whoever handles the cancellation; this order is about the charge before it.
            return Payment(
                payment.order_id,
                PaymentStatus.PAID.value,
                payment.charge_id,
                "",
                payment.amount_minor,
                payment.currency,
                "",
                payment.decided_at_ns,
            )
        return payment

    def charge(self, order: OrderCreated) -> Awaitable[ChargeOutcome]:
        """Charge, in a few attempts under one idempotency key."""
        return self._calls.ask(lambda attempt: self._provider.charge(order, attempt=attempt), order.order_id)

    def result_of(self, order: OrderCreated, outcome: ChargeOutcome) -> Payment:
        """The row that says how the payment ended."""
        match outcome:
            case Captured():
                status, charge_id, reason = PaymentStatus.PAID, outcome.charge_id, ""
            case Declined():
                status, charge_id, reason = PaymentStatus.DECLINED, "", outcome.reason
            case Voided():
                status, charge_id, reason = PaymentStatus.CANCELLED, "", ""
        return Payment(
            order.order_id, status.value, charge_id, "", order.amount_minor, order.currency, reason, time.time_ns()
        )
