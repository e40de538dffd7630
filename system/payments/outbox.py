"""Announcing what the payments table holds, so that what is recorded becomes known.

There is no relay that reads unannounced rows, and none is missing: the message that was not acknowledged *is* the entry
of the outbox. Payments acks an order only after row and announcement, in this order; so whatever a crash leaves
half done has an unacknowledged message in the broker, which is delivered again, to whichever replica lives, finds the
row, and announces. A relay would be a second one to do the same, that polls, races with the first, and needs watching.
The other way round, rows are made while their message is in hand; a row made by a webhook waits for its message, which
holds the answer for whoever asks. Only a refund that somebody makes at the provider, without a cancellation of ours,
has no message: it is recorded and never announced.

Announcing is at least once. The message id makes it once within the broker's dedup window; an announcement that is
known to be older than that is not made again.
"""

from __future__ import annotations

import time

from system import events, topology
from system.announcing import Announcer
from system.events import PaymentProcessed, PaymentStatus
from system.jetstream import PubAck, PublishRefusedError, PublishUnavailableError, PublishUnknownError
from system.metrics import Metrics
from system.payments.store import Payment, PaymentStore
from system.processing import TryLaterError

ANNOUNCE_WITHIN_S = 10.0
REPEAT_WITHIN_S = topology.DEDUP_WINDOW_S / 2
"""Known to be announced for so long: never announced again. Far enough from the window's edge to fall into it."""

_STATUSES = {status.value: status for status in PaymentStatus}  # calling the enum costs four times as much


class Outbox:
    """Announces payments, and notes that they were."""

    def __init__(self, announcer: Announcer, store: PaymentStore, *, metrics: Metrics) -> None:
        self._announcer = announcer
        self._store = store
        self._depth = metrics.gauge("outbox_depth", "Payments decided here and not announced yet")
        self._announced = {
            status: metrics.counter("payments", "Payments announced", label="status", value=status.value)
            for status in PaymentStatus
        }

    def is_due(self, payment: Payment) -> bool:
        """True if this payment is to be announced, for the first time or, harmlessly, again.

        Again, because a broker that lost power may have lost the message together with the ack that led here.
        """
        announced_at_ns = payment.announced_at_ns
        return announced_at_ns is None or time.time_ns() - announced_at_ns < REPEAT_WITHIN_S * 1e9

    async def announce(self, payment: Payment) -> PubAck:
        """Publish PaymentProcessed and wait for the server's ack."""
        status = _STATUSES[payment.status]
        event = PaymentProcessed(
            order_id=payment.order_id,
            status=status,
            payment_id=payment.charge_id,
            amount_minor=payment.amount_minor,
            currency=payment.currency,
            reason=payment.reason,
            processed_at_ns=payment.decided_at_ns,
            refund_id=payment.refund_id,
        )
        self._depth.add(1)
        try:
            ack = await self._announcer.announce(
                subject=topology.PAYMENTS_PROCESSED,
                payload=events.encode_payment_processed(event),
                message_id=topology.payment_processed_id(payment.order_id, status),
                order_id=payment.order_id,
                deadline_s=ANNOUNCE_WITHIN_S,
            )
        except (PublishUnknownError, PublishUnavailableError, PublishRefusedError) as error:
            # A refusal too is about the stream (it is full, say) and not the message: money moved, it must be told.
            raise TryLaterError(str(error)) from None
        finally:
            self._depth.add(-1)
        self._store.note_announced(payment)
        self._announced[status].add()
        return ack
