"""The connection to a real broker, and what it carries: congestion, reconnects, streams that differ."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from system.jetstream import (
    Connection,
    ConsumerSpec,
    Delivery,
    Message,
    NotConnectedError,
    StreamSpec,
    TopologyError,
    ensure_consumer,
    ensure_stream,
)
from system.jetstream.connection import KEPT_AGAIN_S, UNSENT_MAX_BYTES
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Broker, Proxy, wait_until, wait_until_it
from system.tests.streams import CONSUMER, STREAM, Notebook, consuming, publish, publisher_on


async def test_a_server_that_does_not_read_does_not_fill_our_memory(metrics: Metrics) -> None:
    """What it does not take is bounded; beyond that nothing is accepted, and whoever asks is told."""
    stuck = asyncio.Event()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"X","version":"2.10.0","max_payload":1048576,"headers":true}\r\n')
        while b"PING" not in await reader.readline():
            pass
        writer.write(b"PONG\r\n")
        await stuck.wait()
        writer.transport.abort()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with (
        server,
        Connection(
            NatsSettings(url=f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", ping_every_s=30),
            name="test",
            metrics=metrics,
        ) as connection,
    ):
        await connection.open()
        sent: list[int] = []

        async def send_on() -> None:
            while len(sent) < 1000:
                await connection.send("tests.a", b"x" * 100_000)
                sent.append(100_000)
                await asyncio.sleep(0.001)  # so that what can leave, does

        with pytest.raises(NotConnectedError, match="waiting to leave already"):
            await send_on()
        assert 1_000_000 < sum(sent) < 50_000_000
        stuck.set()


async def test_acks_outlive_a_connection_that_is_lost_before_they_leave(broker: Broker, metrics: Metrics) -> None:
    """The work is done while the broker cannot be reached: its acks leave with the next connection."""
    taken: list[Delivery] = []
    finish = asyncio.Event()
    spec = ConsumerSpec(stream="TESTS", name="worker", subject="tests.work", ack_wait_s=30, ack_pending_max=100)

    class Patient:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            taken.extend(deliveries)
            await finish.wait()
            for delivery in deliveries:
                await delivery.ack()

    async with Proxy(broker.port) as proxy:
        settings = NatsSettings(url=f"nats://127.0.0.1:{proxy.port}", reconnect_wait_s=0.05, ping_every_s=0.1)
        async with Connection(settings, name="test", metrics=metrics) as connection:
            await connection.open()
            publisher = await publisher_on(connection, metrics)

            async def is_all_acknowledged() -> bool:
                answer = await connection.request("$JS.API.CONSUMER.INFO.TESTS.worker", within_s=2)
                return b'"num_ack_pending":0,' in answer and b'"num_pending":0,' in answer

            async with consuming(connection, Patient(), metrics, spec):
                await publish(publisher, *(f"m{n}" for n in range(20)))
                await wait_until(lambda: len(taken) == 20)
                proxy.cut()
                await wait_until(lambda: not connection.is_connected)
                finish.set()
                await wait_until(lambda: all(delivery.is_answered for delivery in taken))
                proxy.heal()
                await wait_until(lambda: connection.is_connected)
                await wait_until_it(is_all_acknowledged, what="all acknowledged")

    assert len(taken) == 20


async def test_answers_kept_because_of_a_congestion_leave_when_it_ends(metrics: Metrics) -> None:
    """Nobody tells when the server reads again; without the connection being lost, nothing else would send them."""

    class Congested:
        is_connected = True
        unsent_bytes = 2 * UNSENT_MAX_BYTES
        sent = b""

        def write(self, data: bytes) -> bool:
            self.sent += data
            return True

    client = Congested()
    connection = Connection(NatsSettings(url="nats://127.0.0.1:1"), name="test", metrics=metrics)
    connection._client = client  # type: ignore[assignment]  # as much of it as is asked here
    connection._announce_connected()
    connection._writer.put(b"PING\r\n")
    await wait_until(lambda: client.sent == b"PING\r\n")
    delivery = Delivery(connection, Message("tests.work", "$JS.ACK.TESTS.worker.1.1.1.1.0", b""))
    await delivery.ack()
    await asyncio.sleep(2 * KEPT_AGAIN_S)
    assert b"+ACK" not in client.sent
    client.unsent_bytes = 0

    await wait_until(lambda: b"+ACK" in client.sent)


async def test_answers_that_wait_too_long_for_a_connection_are_dropped(
    broker: Broker, connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has the message now does not want to hear of it: the broker delivers it again, as promised."""
    monkeypatch.setattr("system.jetstream.delivery.ANSWER_WITHIN_S", 0.0)
    publisher = await publisher_on(connection, metrics)
    finish = asyncio.Event()
    seen: list[int] = []

    class Late:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                seen.append(delivery.times_delivered)
                await finish.wait()
                await delivery.ack()

    async with consuming(connection, Late(), metrics):
        await publish(publisher, "a")
        await wait_until(lambda: seen == [1])
        broker.stop(signal.SIGTERM)  # killed, it may forget how often it delivered
        await wait_until(lambda: not connection.is_connected)
        finish.set()
        await broker.start()
        await wait_until(lambda: len(seen) == 2)

    assert seen[1] > 1


async def test_headers_arrive_as_they_were_sent(connection: Connection, metrics: Metrics) -> None:
    """The caller's headers and the message id travel, and the caller's mapping is left alone."""
    publisher = await publisher_on(connection, metrics)
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    seen: list[Mapping[str, str]] = []

    class Reader:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                seen.append(delivery.headers)
                await delivery.ack()

    async with consuming(connection, Reader(), metrics):
        await publisher.publish("tests.work", b"", message_id="id-1", headers=headers, deadline_s=5)
        await wait_until(lambda: bool(seen))

    assert dict(seen[0]) == {**headers, "Nats-Msg-Id": "id-1"}
    assert list(headers) == ["traceparent"]


async def test_a_client_that_closed_for_good_is_replaced(connection: Connection, metrics: Metrics) -> None:
    """nats-py closes on most errors that a server reports: subscriptions and publishing go on over a new client."""
    publisher = await publisher_on(connection, metrics)
    notebook = Notebook()

    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(connection.keep())
        async with consuming(connection, notebook, metrics):
            await publish(publisher, "before")
            await wait_until(lambda: "before" in notebook.payloads)
            assert connection._client is not None
            await connection._client._process_err("'maximum connections exceeded'")
            await wait_until(lambda: not connection.is_connected)
            await publish(publisher, "after")
            await wait_until(lambda: "after" in notebook.payloads)
        keeper.cancel()

    assert metrics.counter("nats_reconnects", "").value == 1


async def test_a_client_that_stopped_trying_is_replaced(
    connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconnection that died silently is noticed, because nothing was tried for too long."""
    monkeypatch.setattr("system.jetstream.connection.STUCK_AFTER_S", 0.2)
    monkeypatch.setattr("system.jetstream.connection.WATCH_EVERY_S", 0.05)
    publisher = await publisher_on(connection, metrics)
    client = connection._client
    assert client is not None

    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(connection.keep())
        client._status = client.RECONNECTING  # and nobody is there to change it back
        await publish(publisher, "after")
        keeper.cancel()

    assert connection._client is not client


async def test_streams_and_consumers_that_differ_are_a_clear_error(connection: Connection) -> None:
    """The same request again is fine; another configuration says in which setting it differs."""
    await ensure_stream(connection, STREAM)
    await ensure_stream(connection, STREAM)
    await ensure_consumer(connection, CONSUMER)
    await ensure_consumer(connection, CONSUMER)

    with pytest.raises(TopologyError, match="duplicate_window is 120000000000, wanted 60000000000"):
        await ensure_stream(connection, StreamSpec(name="TESTS", subject="tests.>", dedup_window_s=60))
    with pytest.raises(TopologyError, match="ack_wait is 1000000000, wanted 9000000000"):
        await ensure_consumer(
            connection,
            ConsumerSpec(stream="TESTS", name="worker", subject="tests.work", ack_wait_s=9, ack_pending_max=100),
        )


async def test_more_replicas_than_the_broker_has_servers_are_a_clear_error(connection: Connection) -> None:
    """A server alone keeps every stream once, and says so; what differs in a cluster is tested with one."""
    with pytest.raises(TopologyError, match="stream TESTS cannot be created: replicas > 1 not supported"):
        await ensure_stream(connection, replace(STREAM, replicas=3))
