"""After a long outage orders knows what it does not know yet; after a short one it is not in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from system import topology
from system.jetstream import Connection, Consumer, Delivery, Publisher
from system.metrics import Metrics
from system.orders import catching_up
from system.orders.catching_up import CatchingUp
from system.tests.parts import wait_until

PROJECTION, _ = topology.projections(10.0)


class Reader:
    """Takes and acknowledges everything."""

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge."""
        for delivery in deliveries:
            await delivery.ack()


async def with_orders(connection: Connection, metrics: Metrics, *subjects: str) -> None:
    """The shop's streams, with messages that nobody has read."""
    await topology.ensure(connection, (PROJECTION,))
    publisher = Publisher(connection, metrics=metrics)
    await publisher.start()
    for number, subject in enumerate(subjects):
        await publisher.publish(subject, b"", message_id=str(number), headers={}, deadline_s=5)


@pytest.mark.parametrize(
    ("subjects", "remembered_s"),
    [
        ((), 0.0),  # nothing is there
        ((topology.ORDERS_CREATED,), 60.0),  # the broker remembers it
        ((topology.ORDERS_CANCELLED,), 0.0),  # nothing of the projection's
    ],
)
async def test_nobody_waits_for_what_the_broker_remembers(
    subjects: tuple[str, ...],
    remembered_s: float,
    connection: Connection,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A restart of orders under load must not refuse anybody."""
    monkeypatch.setattr(catching_up, "REMEMBERED_S", remembered_s)
    await with_orders(connection, metrics, *subjects)
    watched = CatchingUp()

    async with asyncio.timeout(2):
        await watched.watch(connection, PROJECTION)

    assert watched.is_over


async def test_old_orders_are_waited_for_until_the_projection_is_through_with_them(
    connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: until then the same key could become another order. What comes after the start is waited for by nobody."""
    monkeypatch.setattr(catching_up, "REMEMBERED_S", 0.0)
    await with_orders(connection, metrics, *[topology.ORDERS_CREATED] * 3, topology.ORDERS_CANCELLED)
    watched = CatchingUp()
    watching = asyncio.create_task(watched.watch(connection, PROJECTION))
    await asyncio.sleep(5 * catching_up.LOOK_EVERY_S)
    assert not watched.is_over

    async def restore() -> None:
        """It is there."""

    consumer = Consumer(connection, PROJECTION, Reader(), restore=restore, metrics=metrics)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consumer.run())
        await wait_until(lambda: watched.is_over)
        consumer.stop()
    await watching
