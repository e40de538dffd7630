"""Publishing and consuming against a real broker: acks lost, brokers stopped, networks cut."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from system.jetstream import (
    Connection,
    Consumer,
    ConsumerSpec,
    Delivery,
    Handler,
    Message,
    NotConnectedError,
    PubAck,
    Publisher,
    PublishRefusedError,
    PublishUnavailableError,
    PublishUnknownError,
    StreamSpec,
    TopologyError,
    ensure_consumer,
    ensure_stream,
    stored_payload,
)
from system.jetstream.connection import KEPT_AGAIN_S, UNSENT_MAX_BYTES
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Broker, Proxy, wait_until, wait_until_it

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


async def test_a_publish_returns_the_servers_ack(connection: Connection, metrics: Metrics) -> None:
    """Stream, sequence and the duplicate flag come from the server, and the payload is stored under the sequence."""
    publisher = await publisher_on(connection, metrics)

    first = await publisher.publish("tests.a", b"one", message_id="1", headers={}, deadline_s=5)
    second = await publisher.publish("tests.a", b"two", message_id="2", headers={}, deadline_s=5)
    again = await publisher.publish("tests.a", b"other", message_id="1", headers={}, deadline_s=5)

    assert (first.stream, first.sequence, first.duplicate) == ("TESTS", 1, False)
    assert (second.sequence, second.duplicate) == (2, False)
    assert (again.sequence, again.duplicate) == (1, True)
    assert await stored_payload(connection, "TESTS", 1) == b"one"


async def test_a_publish_whose_ack_is_lost_is_repeated_with_the_same_id(
    connection: Connection, metrics: Metrics
) -> None:
    """The first ack is dropped on the way: the second attempt finds the message stored once."""
    dropped: list[Message] = []

    class LossyPublisher(Publisher):
        def _on_ack(self, message: Message) -> None:
            if not dropped:
                dropped.append(message)
            else:
                super()._on_ack(message)

    await ensure_stream(connection, STREAM)
    publisher = LossyPublisher(connection, metrics=metrics, attempt_timeout_s=0.1)
    await publisher.start()

    ack = await publisher.publish("tests.a", b"one", message_id="1", headers={}, deadline_s=5)

    assert dropped
    assert (ack.sequence, ack.duplicate) == (1, True)
    assert metrics.counter("publish_retries", "").value == 1


async def test_a_publish_without_a_server_is_unknown_at_its_deadline(
    broker: Broker, connection: Connection, metrics: Metrics
) -> None:
    """Nothing hangs and nothing leaks: the deadline is kept, and no ack is waited for afterwards."""
    publisher = await publisher_on(connection, metrics)
    broker.stop()
    began_s = time.monotonic()

    with pytest.raises(PublishUnknownError):
        await publisher.publish("tests.a", b"one", message_id="1", headers={}, deadline_s=0.5)

    assert 0.4 < time.monotonic() - began_s < 1.5
    assert metrics.gauge("publishes_outstanding", "").value == 0


async def test_a_publish_waits_for_a_server_that_restarts(
    broker: Broker, connection: Connection, metrics: Metrics
) -> None:
    """Publishes begun while the broker is away are stored, once each, when it is back."""
    publisher = await publisher_on(connection, metrics)
    broker.stop()
    await wait_until(lambda: not connection.is_connected)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish(publisher, *(f"m{n}" for n in range(50)), deadline_s=10))
        await broker.start()

    last = await publisher.publish("tests.a", b"", message_id="last", headers={}, deadline_s=5)
    assert last.sequence == 51


async def test_a_publish_to_a_subject_without_a_stream_is_unknown_not_done(
    connection: Connection, metrics: Metrics
) -> None:
    """No responders is no ack."""
    publisher = await publisher_on(connection, metrics)

    with pytest.raises(PublishUnknownError):
        await publisher.publish("nowhere.at.all", b"", message_id="1", headers={}, deadline_s=0.3)


async def test_a_message_the_server_refuses_raises(connection: Connection, metrics: Metrics) -> None:
    """An error in the PubAck is definite: it is raised at once, not repeated."""
    publisher = await publisher_on(connection, metrics)
    headers = {"Nats-Expected-Last-Sequence": "77"}

    with pytest.raises(PublishRefusedError):
        await publisher.publish("tests.a", b"", message_id="1", headers=headers, deadline_s=5)


async def test_a_refusal_after_an_attempt_whose_ack_was_lost_says_nothing_of_that_attempt(
    connection: Connection, metrics: Metrics
) -> None:
    """The first attempt is stored; what the server says to the second is no reason to tell a customer "not taken"."""

    class LossyPublisher(Publisher):
        def _on_ack(self, message: Message) -> None:
            if b'"error"' in message.payload:
                super()._on_ack(message)

    await ensure_stream(connection, STREAM)
    publisher = LossyPublisher(connection, metrics=metrics, attempt_timeout_s=0.1)
    await publisher.start()
    # The second attempt meets the message of the first, and so another last sequence than it expects.
    headers = {"Nats-Expected-Last-Sequence": "0"}

    with pytest.raises(PublishUnknownError, match="it may be stored"):
        await publisher.publish("tests.a", b"one", message_id="", headers=headers, deadline_s=5)

    assert await stored_payload(connection, "TESTS", 1) == b"one"


async def test_a_publish_that_never_left_is_known_not_to_be_stored(
    broker: Broker, connection: Connection, metrics: Metrics
) -> None:
    """Without a connection until the deadline, nothing was sent: that is definite, and the customer may be told so."""
    publisher = await publisher_on(connection, metrics)
    broker.stop()
    await wait_until(lambda: not connection.is_connected)

    with pytest.raises(PublishUnavailableError, match="was not sent in time"):
        await publisher.publish("tests.a", b"one", message_id="m1", headers={}, deadline_s=0.2)


async def test_no_more_publishes_are_under_way_than_allowed_and_the_rest_wait_their_turn(
    connection: Connection, metrics: Metrics
) -> None:
    """Fifty at once with two under way: all are stored, in the order in which they were asked for."""
    await ensure_stream(connection, STREAM)
    publisher = Publisher(connection, metrics=metrics, outstanding_max=2)
    await publisher.start()
    under_way = metrics.gauge("publishes_outstanding", "")
    most = 0

    async def one(number: int) -> int:
        nonlocal most
        ack = await publisher.publish("tests.a", b"", message_id=f"m{number}", headers={}, deadline_s=5)
        most = max(most, under_way.value)
        return ack.sequence

    assert await asyncio.gather(*(one(number) for number in range(50))) == list(range(1, 51))
    assert most <= 2
    assert under_way.value == metrics.gauge("publishes_waiting", "").value == 0


async def test_a_publish_that_waited_for_its_turn_in_vain_never_left(
    broker: Broker, connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two time out together: the first is unknown; the second, whose turn it is then, is not sent after all."""
    await ensure_stream(connection, STREAM)
    publisher = Publisher(connection, metrics=metrics, outstanding_max=1)
    await publisher.start()
    frames: list[bytes] = []
    monkeypatch.setattr(connection, "post", frames.append)
    broker.stop()

    first, second = await asyncio.gather(
        publisher.publish("tests.a", b"", message_id="first", headers={}, deadline_s=0.2),
        publisher.publish("tests.a", b"", message_id="second", headers={}, deadline_s=0.2),
        return_exceptions=True,
    )

    assert isinstance(first, PublishUnknownError)
    assert isinstance(second, PublishUnavailableError)
    assert [b"first" in frame for frame in frames] == [True]


async def test_when_too_many_wait_another_publish_is_refused_at_once(
    broker: Broker, connection: Connection, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, and certainly not stored; who was cancelled makes room."""
    monkeypatch.setattr("system.jetstream.publisher.WAITING_MAX", 2)
    await ensure_stream(connection, STREAM)
    publisher = Publisher(connection, metrics=metrics, outstanding_max=1)
    await publisher.start()
    broker.stop()

    def begin(name: str) -> asyncio.Task[PubAck]:
        return asyncio.ensure_future(publisher.publish("tests.a", b"", message_id=name, headers={}, deadline_s=30))

    waiting = [begin(f"m{number}") for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(PublishUnavailableError, match="2 publishes wait already"):
        await begin("m3")
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    waiting.append(begin("m4"))
    await asyncio.sleep(0)

    assert (metrics.gauge("publishes_outstanding", "").value, metrics.gauge("publishes_waiting", "").value) == (1, 2)
    for publish_ in waiting:
        publish_.cancel()
    await asyncio.wait(waiting)
    assert (metrics.gauge("publishes_outstanding", "").value, metrics.gauge("publishes_waiting", "").value) == (0, 0)


async def test_a_message_too_large_for_the_server_is_refused_before_it_costs_the_connection(
    connection: Connection, metrics: Metrics
) -> None:
    """A server closes the connection of who sends it too much: everybody else's publishes would suffer."""
    publisher = await publisher_on(connection, metrics)
    size = connection.payload_max_bytes

    with pytest.raises(PublishRefusedError, match=f"the server takes {size}"):
        await publisher.publish("tests.a", b"x" * size, message_id="1", headers={}, deadline_s=5)
    ack = await publisher.publish("tests.a", b"x" * (size - 100), message_id="2", headers={}, deadline_s=5)

    assert ack.sequence == 1
    assert metrics.counter("nats_disconnects", "").value == 0


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
