"""Where consumers bring what they give up.

Promises: when `bury` returns, the message is stored in the stream of dead letters, and may be terminated; if it
raises, that is not known, and the message must be tried again. A message of any size can be buried: one that would be
too large with its death written on it is left behind in its stream, where it stays anyway, and pointed to.
"""

from __future__ import annotations

import logging
import time

from opentelemetry.trace import SpanKind

from system.deadletters.letter import SUBJECT_PREFIX, DeadLetterKind, Death, dead_letter_id, headers_of
from system.jetstream import Connection, Delivery, Publisher
from system.jetstream.wire import header_block
from system.metrics import Metrics
from system.telemetry import LeanTracer, SpanTemplate

log = logging.getLogger(__name__)

BURY_WITHIN_S = 5.0
MARGIN_BYTES = 4096
"""For what is added when a message is published: its id, its trace."""


class DeadLetterOffice:
    """Buries for one process."""

    def __init__(self, connection: Connection, publisher: Publisher, tracer: LeanTracer, metrics: Metrics) -> None:
        self._connection = connection
        self._publisher = publisher
        self._tracer = tracer
        self._metrics = metrics
        self._templates: dict[str, SpanTemplate] = {}

    async def bury(self, delivery: Delivery, *, reason: str, kind: DeadLetterKind, order_id: str) -> None:
        """Store the message with its death; the errors are those of `Publisher.publish`.

        order_id: empty if nobody could read it.
        """
        subject = f"{SUBJECT_PREFIX}{delivery.consumer}"
        message_id = dead_letter_id(delivery.stream, delivery.consumer, delivery.sequence)
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
        span = self._tracer.begin(self._template(subject))
        headers["traceparent"] = span.traceparent
        if span.trace_state:
            headers["tracestate"] = span.trace_state
        try:
            ack = await self._publisher.publish(
                subject, payload, message_id=message_id, headers=headers, deadline_s=BURY_WITHIN_S
            )
        except BaseException as error:
            span.fail(f"{type(error).__name__}: {error}", message_id, order_id or None)
            raise
        span.end(message_id, order_id or None, ack.sequence, ack.duplicate)
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

    def _template(self, subject: str) -> SpanTemplate:
        template = self._templates.get(subject)
        if template is None:
            template = self._templates[subject] = SpanTemplate(
                f"publish {subject}",
                SpanKind.PRODUCER,
                {
                    "messaging.system": "nats",
                    "messaging.operation.type": "publish",
                    "messaging.operation.name": "publish",
                    "messaging.destination.name": subject,
                },
                ("messaging.message.id", "order.id", "messaging.nats.stream.sequence", "messaging.nats.duplicate"),
            )
        return template
