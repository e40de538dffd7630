"""Consuming against a real broker: naks, redeliveries, brokers restarted, networks cut, stops."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from system.jetstream import (
    Connection,
    Consumer,
    ConsumerSpec,
    Delivery,
)
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Broker, Proxy, wait_until
from system.tests.streams import CONSUMER, Notebook, consuming, publish, publisher_on


async def test_a_stop_does_not_wait_for_a_consumer_that_is_being_made_again(
    connection: Connection, metrics: Metrics
) -> None:
    """A broker that does not answer may take 30 s to be given up, and a stop has 15."""
    is_making, finish = asyncio.Event(), asyncio.Event()

    async def restore() -> None:
        is_making.set()
        while not finish.is_set():  # as nats-py, which keeps a cancellation to itself that meets an answer
            with contextlib.suppress(asyncio.CancelledError):
                await finish.wait()

    consumer = Consumer(connection, CONSUMER, Notebook(), restore=restore, metrics=metrics)  # nobody made it
    running = asyncio.create_task(consumer.run())
    await is_making.wait()
    consumer.stop()
    async with asyncio.timeout(2):
        await running
    finish.set()


async def test_what_arrives_together_is_handled_together_and_makes_room_one_by_one(
    connection: Connection, metrics: Metrics
) -> None:
    """Eight hands are filled at once; when five are free again, though the batch goes on, the next ones come."""
    publisher = await publisher_on(connection, metrics)
    batches: list[list[str]] = []
    finish = asyncio.Event()

    class Halting:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            batches.append([delivery.payload.decode() for delivery in deliveries])
            for delivery in deliveries[:5]:
                await delivery.ack()
            await finish.wait()
            for delivery in deliveries[5:]:
                await delivery.ack()

    await publish(publisher, *(f"m{n}" for n in range(20)))
    async with consuming(connection, Halting(), metrics, in_hand_max=8):
        await wait_until(lambda: sum(map(len, batches)) >= 13)
        assert metrics.gauge("in_hand", "", label="consumer", value="worker").value <= 8
        finish.set()
        await wait_until(lambda: sum(map(len, batches)) == 20)

    assert len(batches) < 20
    assert sum(metrics.histogram("handling_seconds", "", label="consumer", value="worker").counts) == 20


async def test_nothing_is_pulled_that_is_not_admitted(connection: Connection, metrics: Metrics) -> None:
    """With none admitted, none; with three, three, and no more while they are in hand; woken up, at once."""
    publisher = await publisher_on(connection, metrics)
    admitted = 0
    asked = 0
    taken: list[Delivery] = []

    class Holding:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            taken.extend(deliveries)
            await finish.wait()
            for delivery in deliveries:
                await delivery.ack()

    def admission() -> int:
        nonlocal asked
        asked += 1
        return admitted

    finish = asyncio.Event()
    await publish(publisher, *(f"m{n}" for n in range(20)))
    async with consuming(connection, Holding(), metrics, admission=admission) as consumer:
        await wait_until(lambda: asked >= 3, what="asking again by itself")
        assert not taken
        admitted = 3
        consumer.wake()
        took_s = await wait_until(lambda: len(taken) == 3)
        assert took_s < 0.2
        before = asked
        await wait_until(lambda: asked >= before + 2, what="asking again by itself")
        assert len(taken) == 3
        admitted = 1000
        finish.set()
        await wait_until(lambda: len(taken) == 20)


async def test_an_unanswered_delivery_comes_again(connection: Connection, metrics: Metrics) -> None:
    """What is not acked within AckWait is delivered again, and counted as a redelivery."""
    publisher = await publisher_on(connection, metrics)
    notebook = Notebook(lambda delivery: delivery.times_delivered > 1)

    async with consuming(connection, notebook, metrics):
        await publish(publisher, "a")
        await wait_until(lambda: ("a", 2) in notebook.seen)

    assert notebook.seen == [("a", 1), ("a", 2)]
    assert metrics.counter("redeliveries", "", label="consumer", value="worker").value == 1


async def test_a_nak_brings_the_message_back_after_its_delay(connection: Connection, metrics: Metrics) -> None:
    """The delay is kept, well before AckWait."""
    publisher = await publisher_on(connection, metrics)
    times_s: list[float] = []

    class Reluctant:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                times_s.append(time.monotonic())
                await (delivery.nak(0.2) if delivery.times_delivered == 1 else delivery.ack())

    async with consuming(connection, Reluctant(), metrics):
        await publish(publisher, "a")
        await wait_until(lambda: len(times_s) == 2)

    assert 0.2 <= times_s[1] - times_s[0] < 0.9


async def test_a_terminated_message_never_comes_again(connection: Connection, metrics: Metrics) -> None:
    """Term ends it: after it, and after what followed was handled, nothing is pending."""
    publisher = await publisher_on(connection, metrics)
    seen: list[str] = []

    class Terminator:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                seen.append(delivery.payload.decode())
                await (delivery.term("no\r\ngood") if delivery.payload == b"bad" else delivery.nak(0.3))

    async with consuming(connection, Terminator(), metrics):
        await publish(publisher, "bad", "good")
        await wait_until(lambda: seen.count("good") >= 3)

    assert seen.count("bad") == 1


async def test_a_handling_longer_than_ack_wait_is_not_delivered_again(connection: Connection, metrics: Metrics) -> None:
    """In-progress signals keep the delivery ours for as long as the handling takes."""
    publisher = await publisher_on(connection, metrics)
    finish = asyncio.Event()
    seen: list[int] = []

    class Slow:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                seen.append(delivery.times_delivered)
                await finish.wait()
                await delivery.ack()

    spec = ConsumerSpec(stream="TESTS", name="slow", subject="tests.work", ack_wait_s=0.4, ack_pending_max=10)
    async with consuming(connection, Slow(), metrics, spec):
        await publish(publisher, "a")
        began_s = time.monotonic()
        await wait_until(lambda: time.monotonic() - began_s > 3 * spec.ack_wait_s)
        finish.set()

    assert seen == [1]


async def test_no_more_than_the_bound_is_in_hand(connection: Connection, metrics: Metrics) -> None:
    """A hundred messages and four hands: never more than four at once, and all of them in the end."""
    publisher = await publisher_on(connection, metrics)
    in_hand = metrics.gauge("in_hand", "", label="consumer", value="worker")
    seen: set[str] = set()
    most = 0

    class Careful:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            nonlocal most
            for delivery in deliveries:
                most = max(most, in_hand.value)
                await asyncio.sleep(0)
                seen.add(delivery.payload.decode())
                await delivery.ack()

    await publish(publisher, *(f"m{n}" for n in range(100)))
    async with consuming(connection, Careful(), metrics, in_hand_max=4):
        await wait_until(lambda: len(seen) == 100)

    assert 1 <= most <= 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_consumer_goes_on_after_the_broker_restarted(
    broker: Broker, connection: Connection, metrics: Metrics, number: signal.Signals
) -> None:
    """nats.py #504: the pull request that was open is gone with the old server, and is made anew."""
    publisher = await publisher_on(connection, metrics)
    notebook = Notebook()

    async with consuming(connection, notebook, metrics):
        await publish(publisher, "before")
        await wait_until(lambda: "before" in notebook.payloads)
        broker.stop(number)
        await broker.start()
        await publish(publisher, "after", deadline_s=10)
        await wait_until(lambda: "after" in notebook.payloads)

    assert metrics.counter("nats_reconnects", "").value >= 1


async def test_a_consumer_that_nobody_answers_is_not_served(
    broker: Broker, connection: Connection, metrics: Metrics
) -> None:
    """P12: a broker that is back without JetStream, or without the disk, keeps the connection and does no work."""
    async with consuming(connection, Notebook(), metrics) as consumer:
        await wait_until(lambda: consumer.is_served)
        for has_jetstream in (False, True):
            broker.stop()
            broker.has_jetstream = has_jetstream
            await broker.start()
            await wait_until(lambda: connection.is_connected and consumer.is_served is has_jetstream, within_s=10)  # noqa: B023 - waited for at once


async def test_a_consumer_deleted_under_us_is_made_again(connection: Connection, metrics: Metrics) -> None:
    """It starts at the beginning of the stream again: messages come twice rather than never."""
    publisher = await publisher_on(connection, metrics)
    notebook = Notebook()

    async with consuming(connection, notebook, metrics):
        await publish(publisher, "a")
        await wait_until(lambda: "a" in notebook.payloads)
        await connection.request("$JS.API.CONSUMER.DELETE.TESTS.worker", within_s=2)
        await publish(publisher, "b")
        await wait_until(lambda: "b" in notebook.payloads)

    assert set(notebook.payloads) == {"a", "b"}


async def test_a_broker_that_lost_everything_is_set_up_again(
    broker: Broker, connection: Connection, metrics: Metrics, tmp_path: Path
) -> None:
    """Stream and consumer are gone with the broker's disk: both are made again, and work goes on."""
    publisher = await publisher_on(connection, metrics)
    notebook = Notebook()

    async with consuming(connection, notebook, metrics):
        await publish(publisher, "before")
        await wait_until(lambda: "before" in notebook.payloads)
        broker.stop()
        shutil.rmtree(tmp_path / "jetstream")
        await broker.start()
        await publish(publisher, "after", deadline_s=10)
        await wait_until(lambda: "after" in notebook.payloads)


async def test_after_a_silent_partition_everything_is_delivered_soon(broker: Broker, metrics: Metrics) -> None:
    """Bytes go nowhere for 1.5 s and no connection breaks: after the heal all messages are handled within 2 s."""
    own, notebook = Metrics(), Notebook()
    async with (
        Proxy(broker.port) as proxy,
        Connection(
            NatsSettings(url=f"nats://127.0.0.1:{proxy.port}", reconnect_wait_s=0.2), name="cut", metrics=own
        ) as behind,
        Connection(NatsSettings(url=broker.url, reconnect_wait_s=0.2), name="direct", metrics=metrics) as direct,
    ):
        await direct.open()
        await behind.open()
        publisher = await publisher_on(direct, metrics)
        spec = ConsumerSpec(stream="TESTS", name="worker", subject="tests.work", ack_wait_s=2.0, ack_pending_max=100)
        async with consuming(behind, notebook, own, spec):
            await publish(publisher, "before")
            await wait_until(lambda: "before" in notebook.payloads)
            proxy.cut()
            cut_s = time.monotonic()
            await publish(publisher, *(f"m{n}" for n in range(20)))
            await wait_until(lambda: time.monotonic() - cut_s > 1.5)
            proxy.heal()
            await wait_until(lambda: len(set(notebook.payloads)) == 21, within_s=2.0, what="all 21 handled")


async def test_stopping_finishes_what_is_in_hand_and_gives_the_rest_back(
    connection: Connection, metrics: Metrics
) -> None:
    """What a stopped consumer had not begun is with the next one long before AckWait would be over."""
    publisher = await publisher_on(connection, metrics)
    spec = ConsumerSpec(stream="TESTS", name="worker", subject="tests.work", ack_wait_s=30, ack_pending_max=100)
    finish, first, second = asyncio.Event(), Notebook(), Notebook()

    class Blocked:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            await finish.wait()
            await first.handle(deliveries)

    await publish(publisher, *(f"m{n}" for n in range(20)))
    async with consuming(connection, Blocked(), metrics, spec, in_hand_max=8) as consumer:
        await wait_until(lambda: metrics.gauge("in_hand", "", label="consumer", value="worker").value == 8)
        consumer.stop()
        finish.set()
    async with consuming(connection, second, metrics, spec):
        await wait_until(lambda: len(first.payloads) + len(second.payloads) == 20)

    assert len(first.payloads) == 8
