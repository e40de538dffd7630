"""Where consumers bring what they give up.

Promises: when `bury` returns, the message is stored in the stream of dead letters, and may be terminated; if it
raises, that is not known, and the message must be tried again. A message of any size can be buried: one that would be
too large with its death written on it is left behind in its stream, where it stays anyway, and pointed to.
"""

from __future__ import annotations

import logging
import time

from system.announcing import Announcer
from system.deadletters.letter import SUBJECT_PREFIX, DeadLetterKind, Death, dead_letter_id, headers_of
from system.jetstream import Connection, Delivery
from system.jetstream.wire import header_block
from system.metrics import Metrics

log = logging.getLogger(__name__)

BURY_WITHIN_S = 5.0
MARGIN_BYTES = 4096
"""For what is added when a message is published: its id, its trace."""


class DeadLetterOffice:
    """Buries for one process."""

    def __init__(self, connection: Connection, announcer: Announcer, metrics: Metrics) -> None:
        self._connection = connection
        self._announcer = announcer
        self._metrics = metrics

    async def bury(self, delivery: Delivery, *, reason: str, kind: DeadLetterKind, order_id: str) -> None:
        """Store the message with its death; the errors are those of `Publisher.publish`.

        order_id: empty if nobody could read it.
        """
        death = Death(
            kind=kind,
            reason=reason,
            stream=delivery.stream,
            sequence=delivery.sequence,
            subject=delivery.subject,
            consumer=delivery.consumer,
            deliveries=delivery.times_delivered,
            order_id=order_id,
            at_ns=time.time_ns(),
        )
        headers, payload = headers_of(death, delivery.headers), delivery.payload
        size_bytes = len(header_block(headers)) + len(payload) + MARGIN_BYTES
        if size_bytes > self._connection.payload_max_bytes > 0:
            headers, payload = headers_of(death, delivery.headers, is_left_behind=True), b""
        ack = await self._announcer.announce(
            subject=f"{SUBJECT_PREFIX}{delivery.consumer}",
            payload=payload,
            message_id=dead_letter_id(delivery.stream, delivery.consumer, delivery.sequence, delivery.stored_ns),
            order_id=order_id,
            deadline_s=BURY_WITHIN_S,
            headers=headers,
        )
        self._metrics.counter("dead_letters", "Messages given up and kept", label="kind", value=kind).add()
        log.error(
            "message %d of %s is dead letter %d of %s (%s): %s",
            delivery.sequence,
            delivery.stream,
            ack.sequence,
            ack.stream,
            kind,
            reason,
        )
