"""Telling the world that something happened: a message, published inside its PRODUCER span, carrying the trace.

The span is opened here and not in `Publisher`, so that publishing knows nothing of tracing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from opentelemetry.trace import SpanKind

from system.jetstream import PubAck, Publisher
from system.telemetry import LeanTracer, SpanTemplate


class Announcer:
    """Publishes under the shop's rules."""

    def __init__(self, tracer: LeanTracer, publisher: Publisher) -> None:
        self._tracer = tracer
        self._publisher = publisher

    async def announce(
        self,
        *,
        subject: str,
        payload: bytes,
        message_id: str,
        order_id: str,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """The server's ack for this message; errors are those of `Publisher.publish`.

        order_id: empty if nobody knows. headers: further ones.
        """
        span = self._tracer.begin(_template(subject))
        headers = {} if headers is None else dict(headers)
        span.inject(headers)
        try:
            ack = await self._publisher.publish(
                subject, payload, message_id=message_id, headers=headers, deadline_s=deadline_s
            )
        except BaseException as error:
            # Being cancelled is no answer either: whether it is stored is for the stream to say.
            span.fail(f"{type(error).__name__}: {error}", message_id, order_id or None)
            raise
        if ack.duplicate:
            span.note("messaging.nats.duplicate", True)  # noqa: FBT003 - an attribute's value
        span.end(message_id, order_id or None, ack.sequence)
        return ack


@functools.lru_cache(maxsize=256)
def _template(subject: str) -> SpanTemplate:
    return SpanTemplate(
        f"publish {subject}",
        SpanKind.PRODUCER,
        {
            "messaging.system": "nats",
            "messaging.operation.type": "send",
            "messaging.operation.name": "publish",
            "messaging.destination.name": subject,
        },
        ("messaging.message.id", "order.id", "messaging.nats.stream.sequence"),
    )
