"""What happens around the handling of a delivery: its CONSUMER span, and an answer to the broker in any case.

Promises: a handling never raises. What can never succeed (`GiveUpError`, undecodable bytes) is terminated, with an
error in the log and a count; a stopgap until there is a dead-letter stream. Everything else is handed back with a
delay that grows with the number of deliveries, so that an outage is not met with a storm.
"""

from __future__ import annotations

import logging
import random

from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, get_current_span

from system import telemetry
from system.events import UndecodableError
from system.jetstream import Delivery, Handler
from system.metrics import Metrics

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0


class GiveUpError(Exception):
    """This message can never be handled; the message says why."""


class TryLaterError(Exception):
    """This message cannot be handled now; the message says why."""


class TracedHandler:
    """A handler, inside its span and with its failures answered."""

    def __init__(self, handler: Handler, *, tracer: Tracer, metrics: Metrics) -> None:
        self._handler = handler
        self._tracer = tracer
        self._given_up = metrics.counter("messages_terminated", "Messages that could never be handled")
        self._handed_back = metrics.counter("messages_handed_back", "Deliveries handed back for another try")

    async def handle(self, delivery: Delivery) -> None:
        """Handle one delivery."""
        parent = telemetry.extract(delivery.headers)
        origin = get_current_span(parent).get_span_context()
        with self._tracer.start_as_current_span(
            f"process {delivery.subject}",
            context=parent,
            kind=SpanKind.CONSUMER,
            links=_links(origin),
            attributes=_attributes(delivery),
            record_exception=False,
        ) as span:
            try:
                await self._handler.handle(delivery)
            except (GiveUpError, UndecodableError) as error:
                await self._give_up(delivery, span, error)
            except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the message must not be lost
                await self._hand_back(delivery, span, error)

    async def _give_up(self, delivery: Delivery, span: Span, error: Exception) -> None:
        span.set_status(Status(StatusCode.ERROR, str(error)))
        self._given_up.add()
        log.error("message %d of %s is terminated: %s", delivery.sequence, delivery.stream, error)
        await delivery.term(str(error))

    async def _hand_back(self, delivery: Delivery, span: Span, error: Exception) -> None:
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._handed_back.add()
        delay_s = min(RETRY_FIRST_S * 2 ** min(delivery.times_delivered - 1, 10), RETRY_MAX_S)
        delay_s *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter is no secret
        log.warning(
            "message %d of %s is handed back for %.2f s after delivery %d: %s: %s",
            delivery.sequence,
            delivery.stream,
            delay_s,
            delivery.times_delivered,
            type(error).__name__,
            error,
            exc_info=None if isinstance(error, TryLaterError) else error,
        )
        await delivery.nak(delay_s)


def _links(origin: SpanContext) -> list[Link]:
    # A parent for those who draw trees, a link for those who follow the messaging conventions.
    return [Link(origin)] if origin.is_valid else []


def _attributes(delivery: Delivery) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": delivery.subject,
        "messaging.consumer.group.name": delivery.consumer,
        "messaging.nats.delivery_count": delivery.times_delivered,
        "messaging.nats.stream.sequence": delivery.sequence,
    }
    message_id = delivery.headers.get("Nats-Msg-Id")
    if message_id:
        attributes["messaging.message.id"] = message_id
    return attributes
