"""What payments does with an order: charge, announce, ack, in this order and never another.

Promises: the ack comes after the effect and after the announcement is stored, so a crash anywhere in between leads to a
redelivery that finds the charge made (same idempotency key) and the announcement stored (same message id). A decline is
an outcome like any other. What cannot be done now is handed back with a delay, by `system.processing`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from system import events, telemetry, topology
from system.announcing import Announcer
from system.events import OrderCreated, PaymentProcessed, PaymentStatus
from system.jetstream import Delivery, PubAck, PublishUnknownError
from system.metrics import Metrics
from system.payments.provider_client import (
    Captured,
    Declined,
    ProviderClient,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from system.processing import GiveUpError, TryLaterError

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 3
BACKOFF_FIRST_S = 0.1
BACKOFF_FACTOR = 3.0
ANNOUNCE_WITHIN_S = 10.0


class PaymentHandler:
    """Handles the deliveries of `payment-processor`."""

    def __init__(self, provider: ProviderClient, announcer: Announcer, *, metrics: Metrics) -> None:
        self._provider = provider
        self._announcer = announcer
        self._metrics = metrics
        self._retries = metrics.counter("charge_retries", "Charges asked for again within one delivery")

    async def handle(self, delivery: Delivery) -> None:
        """The whole story of one delivery."""
        order = self.read(delivery)
        outcome = await self.charge(order)
        await self.announce(order, outcome)
        await delivery.ack()

    def read(self, delivery: Delivery) -> OrderCreated:
        """The order; `UndecodableError` if these bytes are none."""
        order = events.decode_order_created(delivery.payload)
        telemetry.about_order(order.order_id)
        return order

    async def charge(self, order: OrderCreated) -> Captured | Declined:
        """Charge, in up to `ATTEMPTS_MAX` attempts under one idempotency key."""
        attempt = 1
        while True:
            try:
                return await self._provider.charge(order, attempt=attempt)
            except ProviderRefusedError as error:
                raise GiveUpError(f"order {order.order_id} cannot be charged: {error}") from None
            except ProviderUnavailableError as error:
                if attempt == ATTEMPTS_MAX:
                    raise TryLaterError(f"order {order.order_id} is not charged yet: {error}") from None
                log.info("charging %s, attempt %d: %s", order.order_id, attempt, error)
            await self.back_off(attempt)
            attempt += 1
            self._retries.add()

    async def back_off(self, attempt: int) -> None:
        """Wait between two attempts, longer each time, with full jitter so that a crowd spreads out."""
        await asyncio.sleep(random.uniform(0.0, 2.0) * BACKOFF_FIRST_S * BACKOFF_FACTOR ** (attempt - 1))  # noqa: S311 - jitter is no secret

    async def announce(self, order: OrderCreated, outcome: Captured | Declined) -> PubAck:
        """Publish PaymentProcessed and wait for the server's ack."""
        event = self.result_of(order, outcome)
        try:
            ack = await self._announcer.announce(
                subject=topology.PAYMENTS_PROCESSED,
                payload=events.encode_payment_processed(event),
                message_id=topology.payment_processed_id(order.order_id),
                order_id=order.order_id,
                deadline_s=ANNOUNCE_WITHIN_S,
            )
        except PublishUnknownError as error:
            raise TryLaterError(str(error)) from None
        self._metrics.counter("payments", "Payments announced", label="status", value=event.status.value).add()
        return ack

    def result_of(self, order: OrderCreated, outcome: Captured | Declined) -> PaymentProcessed:
        """The event that says how the payment ended."""
        match outcome:
            case Captured():
                status, payment_id, reason = PaymentStatus.PAID, outcome.charge_id, ""
            case Declined():
                status, payment_id, reason = PaymentStatus.DECLINED, "", outcome.reason
        return PaymentProcessed(
            order_id=order.order_id,
            status=status,
            payment_id=payment_id,
            amount_minor=order.amount_minor,
            currency=order.currency,
            reason=reason,
            processed_at_ns=time.time_ns(),
        )
