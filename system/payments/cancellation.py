"""What payments does with a cancellation: undo at the provider, record, announce, ack.

Promises: an order whose cancellation is acknowledged here was refunded, once, or will never be charged, or had been
declined. Which of them is the provider's to say, because it decides about one charge key one thing at a time: a refund
that meets no charge rules it out, and the charge that comes later, from whichever replica, is told so. So there is no
moment at which a cancellation and a charge that race can both believe that they came first.

A cancellation that does not say how much the order was over can only be carried out once the charge is recorded
here; until then it is handed back.
"""

from __future__ import annotations

import time

from msgspec.structs import replace

from system import events, telemetry
from system.events import OrderCancelled, PaymentStatus
from system.jetstream import Delivery
from system.metrics import Metrics
from system.payments.calls import ProviderCalls
from system.payments.outbox import Outbox
from system.payments.provider_client import Bill, Declined, ProviderClient, Refunded, RefundOutcome, Voided
from system.payments.store import Payment, PaymentStore
from system.payments.work import PaymentWork, check_id
from system.processing import TryLaterError


class ContradictionError(Exception):
    """The provider has forgotten money that it took: people have to look, so it becomes a dead letter in the end."""


class CancellationHandler(PaymentWork):
    """Handles the deliveries of `cancellation-processor`."""

    def __init__(
        self, provider: ProviderClient, calls: ProviderCalls, store: PaymentStore, outbox: Outbox, *, metrics: Metrics
    ) -> None:
        super().__init__(provider, calls, store, outbox)
        self._metrics = metrics

    async def handle(self, delivery: Delivery) -> None:
        """The whole story of one delivery."""
        cancellation = self.read(delivery)
        payment = await self.find(cancellation)
        if payment is None or payment.status == PaymentStatus.PAID.value:
            bill = self.bill_of(cancellation, payment)
            outcome = await self.undo(bill)
            if payment is not None and not isinstance(outcome, Refunded):
                raise ContradictionError(
                    f"order {bill.order_id} is recorded as paid ({payment.charge_id}), and the provider says that its "
                    f"charge is {type(outcome).__name__.lower()}"
                )
            payment = self.result_of(cancellation, bill, outcome)
            if payment is not None:
                await self.record(payment)
        if payment is not None and payment.is_undone and self._outbox.is_due(payment):
            # Whoever recorded it first may not have known why: a webhook, or a charge that found itself ruled out.
            await self.announce(payment if payment.reason else replace(payment, reason=cancellation.reason))
        await delivery.ack()

    def read(self, delivery: Delivery) -> OrderCancelled:
        """The cancellation; `UndecodableError` if these bytes are none."""
        cancellation = events.decode_order_cancelled(delivery.payload)
        telemetry.about_order(cancellation.order_id)
        check_id(cancellation.order_id)
        return cancellation

    async def find(self, cancellation: OrderCancelled) -> Payment | None:
        """How the payment of the cancelled order stands here, if it has begun to."""
        return await self.recorded(cancellation.order_id)

    def bill_of(self, cancellation: OrderCancelled, payment: Payment | None) -> Bill:
        """The money that is to be undone."""
        if payment is not None:
            return Bill(order_id=payment.order_id, amount_minor=payment.amount_minor, currency=payment.currency)
        if not cancellation.amount_minor or not cancellation.currency:
            raise TryLaterError(
                f"order {cancellation.order_id} is cancelled by somebody who does not say how much it is over, "
                "and it is not charged yet"
            )
        return Bill(
            order_id=cancellation.order_id, amount_minor=cancellation.amount_minor, currency=cancellation.currency
        )

    async def undo(self, bill: Bill) -> RefundOutcome:
        """Refund or rule out, in a few attempts under one idempotency key."""
        outcome = await self._calls.ask(lambda attempt: self._provider.refund(bill, attempt=attempt), bill.order_id)
        word = type(outcome).__name__.lower()
        self._metrics.counter("refunds", "Cancellations carried out", label="outcome", value=word).add()
        return outcome

    def result_of(self, cancellation: OrderCancelled, bill: Bill, outcome: RefundOutcome) -> Payment | None:
        """The row that says how the payment was undone; None if there was nothing to undo."""
        match outcome:
            case Refunded():
                status, charge_id, refund_id = PaymentStatus.REFUNDED, outcome.charge_id, outcome.refund_id
            case Voided():
                status, charge_id, refund_id = PaymentStatus.CANCELLED, "", ""
            case Declined():
                return None
        return Payment(
            bill.order_id,
            status.value,
            charge_id,
            refund_id,
            bill.amount_minor,
            bill.currency,
            cancellation.reason,
            time.time_ns(),
        )
