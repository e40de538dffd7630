"""Telling the world that something happened: an event, published inside its PRODUCER span, carrying the trace.

The span is opened here and not in `Publisher`, so that publishing knows nothing of tracing.
"""

from __future__ import annotations

from opentelemetry.trace import SpanKind, Tracer

from system import telemetry
from system.jetstream import PubAck, Publisher


class Announcer:
    """Publishes events under the shop's rules."""

    def __init__(self, tracer: Tracer, publisher: Publisher) -> None:
        self._tracer = tracer
        self._publisher = publisher

    async def announce(
        self, *, subject: str, payload: bytes, message_id: str, order_id: str, deadline_s: float
    ) -> PubAck:
        """The server's ack for this event; errors are those of `Publisher.publish`."""
        attributes = {
            "messaging.system": "nats",
            "messaging.operation.type": "publish",
            "messaging.operation.name": "publish",
            "messaging.destination.name": subject,
            "messaging.message.id": message_id,
            "order.id": order_id,
        }
        with self._tracer.start_as_current_span(
            f"publish {subject}", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            headers: dict[str, str] = {}
            telemetry.inject(headers)
            ack = await self._publisher.publish(
                subject, payload, message_id=message_id, headers=headers, deadline_s=deadline_s
            )
            span.set_attributes(
                {"messaging.nats.stream.sequence": ack.sequence, "messaging.nats.duplicate": ack.duplicate}
            )
            return ack
