"""Publishing against a real broker: acks lost, brokers stopped, too many at once."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from system.jetstream import (
    Connection,
    Message,
    PubAck,
    Publisher,
    PublishRefusedError,
    PublishUnavailableError,
    PublishUnknownError,
    ensure_stream,
    stored_payload,
)
from system.metrics import Metrics
from system.tests.parts import Broker, wait_until
from system.tests.streams import STREAM, publish, publisher_on


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


async def test_a_stream_that_is_full_stores_nothing_and_says_so(connection: Connection, metrics: Metrics) -> None:
    """P5: the server calls it a matter of now (503), but it is certain, and waiting makes no room."""
    publisher = await publisher_on(connection, metrics)
    config = msgspec.json.encode({"name": "FULL", "subjects": ["full.>"], "max_msgs": 1, "discard": "new"})
    await connection.request("$JS.API.STREAM.CREATE.FULL", config, within_s=2)
    await publisher.publish("full.a", b"", message_id="1", headers={}, deadline_s=5)

    with pytest.raises(PublishRefusedError, match="maximum messages exceeded"):
        await publisher.publish("full.a", b"", message_id="2", headers={}, deadline_s=60)


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
