"""A stream, a consumer and those who work with them, for tests against a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from system.jetstream import (
    Connection,
    Consumer,
    ConsumerSpec,
    Delivery,
    Handler,
    Publisher,
    StreamSpec,
    ensure_consumer,
    ensure_stream,
)
from system.metrics import Metrics

STREAM = StreamSpec(name="TESTS", subject="tests.>", dedup_window_s=120)
CONSUMER = ConsumerSpec(stream="TESTS", name="worker", subject="tests.work", ack_wait_s=1.0, ack_pending_max=100)


class Notebook:
    """A handler that writes down what it is given, and answers as it is told."""

    def __init__(self, answer: Callable[[Delivery], object] | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self._answer = answer

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Write them down, and ack them if told so."""
        for delivery in deliveries:
            self.seen.append((delivery.payload.decode(), delivery.times_delivered))
            if self._answer is None or self._answer(delivery):
                await delivery.ack()

    @property
    def payloads(self) -> list[str]:
        """What came, in its order."""
        return [payload for payload, _ in self.seen]


@asynccontextmanager
async def consuming(
    connection: Connection,
    handler: Handler,
    metrics: Metrics,
    spec: ConsumerSpec = CONSUMER,
    in_hand_max: int = 64,
    admission: Callable[[], int] | None = None,
) -> AsyncIterator[Consumer]:
    """A consumer that runs within the block."""

    async def ensure() -> None:
        await ensure_stream(connection, STREAM)
        await ensure_consumer(connection, spec)

    await ensure()
    consumer = Consumer(
        connection, spec, handler, restore=ensure, metrics=metrics, in_hand_max=in_hand_max, admission=admission
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consumer.run())
        yield consumer
        consumer.stop()


async def publisher_on(connection: Connection, metrics: Metrics, *, attempt_timeout_s: float = 0.3) -> Publisher:
    """A publisher with a stream to publish to."""
    await ensure_stream(connection, STREAM)
    publisher = Publisher(connection, metrics=metrics, attempt_timeout_s=attempt_timeout_s)
    await publisher.start()
    return publisher


async def publish(publisher: Publisher, *payloads: str, deadline_s: float = 5.0) -> None:
    """Publish these, each under its own message id."""
    await asyncio.gather(
        *(
            publisher.publish("tests.work", text.encode(), message_id=text, headers={}, deadline_s=deadline_s)
            for text in payloads
        )
    )
