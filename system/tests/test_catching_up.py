"""After a long outage orders knows what it does not know yet; after a short one it is not in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

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


@asynccontextmanager
async def watching(watched: CatchingUp, connection: Connection) -> AsyncIterator[None]:
    """It watches within the block."""
    task = asyncio.create_task(watched.watch(connection, PROJECTION))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


@asynccontextmanager
async def reading(connection: Connection, metrics: Metrics) -> AsyncIterator[None]:
    """Somebody takes and acknowledges everything within the block."""

    async def restore() -> None:
        """It is there."""

    consumer = Consumer(connection, PROJECTION, Reader(), restore=restore, metrics=metrics)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consumer.run())
        yield
        consumer.stop()


async def with_orders(connection: Connection, metrics: Metrics, *subjects: str, first: int = 0) -> None:
    """The shop's streams, with messages that nobody has read."""
    await topology.ensure(connection, (PROJECTION,))
    publisher = Publisher(connection, metrics=metrics)
    await publisher.start()
    for number, subject in enumerate(subjects, start=first):
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

    async with watching(watched, connection):
        await wait_until(lambda: watched.is_over, within_s=2)

    assert watched.is_known


async def test_old_orders_are_waited_for_until_the_projection_is_through_with_them(
    connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: until then the same key could become another order. What comes after the start is waited for by nobody."""
    monkeypatch.setattr(catching_up, "REMEMBERED_S", 0.0)
    await with_orders(connection, metrics, *[topology.ORDERS_CREATED] * 3, topology.ORDERS_CANCELLED)
    watched = CatchingUp()
    async with watching(watched, connection):
        await wait_until(lambda: watched.is_known)
        assert not watched.is_over

        async with reading(connection, metrics):
            await wait_until(lambda: watched.is_over)


async def test_a_table_that_takes_nothing_is_noticed_before_the_broker_forgets(
    connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: what was accepted meanwhile, by whichever replica, is then known to the stream alone."""
    monkeypatch.setattr(catching_up, "REMEMBERED_S", 0.0)
    await with_orders(connection, metrics, topology.ORDERS_CREATED)
    watched = CatchingUp()
    async with watching(watched, connection):
        async with reading(connection, metrics):
            await wait_until(lambda: watched.is_over)
        await with_orders(connection, metrics, topology.ORDERS_CREATED, first=10)

        known = []
        for happens in (watched.not_committed, watched.committed, watched.not_committed, watched.not_committed):
            happens()
            known.append(watched.is_over)
        assert known == [True, True, True, False]  # the first failure may be the last

        async with reading(connection, metrics):
            await wait_until(lambda: watched.is_over)
