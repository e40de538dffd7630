"""Dead letters: nothing is lost on the way in or out, and people can see what there is."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import pytest_asyncio

from system import events, topology
from system.announcing import Announcer
from system.deadletters import DeadLetterOffice, office
from system.deadletters.command import printable
from system.deadletters.letter import (
    DeadLetter,
    DeadLetterKind,
    Death,
    NoDeadLetterError,
    Stray,
    headers_of,
    letter_in,
)
from system.deadletters.stream import DeadLetterStream, ReplayError
from system.events import OrderCreated
from system.jetstream import Connection, Delivery, Publisher, PublishUnknownError, RequestError
from system.jetstream.wire import headers_in
from system.metrics import Metrics
from system.settings import TelemetrySettings
from system.telemetry import LeanTracer, Telemetry
from system.tests.parts import Broker

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# An order, and a field that nobody here has heard of.
PAYLOAD = (
    events.encode_order_created(
        OrderCreated(order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)
    )
    + b"\x9a\x03\x03new"
)
DEATH = Death(
    kind="poison",
    reason="amount_minor=-5 is negative",
    stream="ORDERS",
    sequence=17,
    subject="orders.created",
    consumer="payment-processor",
    deliveries=3,
    order_id="o1",
    at_ns=1_795_255_353_673_838_198,
)


def letter(headers: Mapping[str, str], *, number: int = 5) -> DeadLetter:
    """A dead letter of a message with these headers."""
    return letter_in(number, headers_of(DEATH, headers), PAYLOAD)


# Headers.


def test_what_a_death_says_comes_back() -> None:
    """Written by one process, read by another."""
    assert letter({"Nats-Msg-Id": "order-created:o1"}).death == DEATH


def test_the_headers_of_the_message_are_restored() -> None:
    """But for those that would tell the broker something: they are kept, to be looked at."""
    original = {
        "traceparent": TRACEPARENT,
        "TraceState": "a=b",
        "Colour": "grün",
        "Nats-Msg-Id": "order-created:o1",
        "Nats-Rollup": "all",
        "Nats-Expected-Last-Sequence": "3",
    }
    dead = letter(original)

    assert dead.original_headers == {"traceparent": TRACEPARENT, "tracestate": "a=b", "Colour": "grün"}
    assert not [name for name in dead.headers if name.lower().startswith("nats-")]
    assert dead.headers["Dead-Letter-Msg-Id"] == "order-created:o1"
    assert dead.headers["Dead-Letter-Kept-Nats-Rollup"] == "all"


@pytest.mark.parametrize(
    ("own_id", "replay_id"),
    [
        ("order-created:o1", "replay:17:1:order-created:o1"),
        ("replay:3:1:order-created:o1", "replay:17:2:order-created:o1"),
        ("replay:3:12:a:b\nc", "replay:17:13:a:b\nc"),
        ("replay:me", "replay:17:1:replay:me"),
        ("", "replay:17:1:ORDERS:17"),
    ],
)
def test_the_id_of_a_replay_is_new_and_always_the_same(own_id: str, replay_id: str) -> None:
    """New, or the broker would not store it; the same, so that a repeated replay is stored once."""
    dead = letter({"Nats-Msg-Id": own_id} if own_id else {})

    assert dead.replay_id == replay_id == letter(dead.original_headers | {"Nats-Msg-Id": own_id}).replay_id


def test_what_others_wrote_cannot_break_a_header_or_forge_a_death() -> None:
    """Line breaks, endless reasons, names that are none, and headers of ours on a message of theirs."""
    death = replace(DEATH, reason="a\r\nDead-Letter-Order: forged\x00" + "x" * 5000, order_id="o\n1")
    headers = headers_of(
        death, {"Dead-Letter-Kind": "fine", "Dead-Letter-Replays": "9", "a(b": "c", "Nats-(": "d", "ok": "e"}
    )

    assert all(name.isascii() and "(" not in name for name in headers)
    assert not any(break_ in value for value in headers.values() for break_ in "\r\n\x00\u2028")
    assert headers["Dead-Letter-Reason"].startswith("a Dead-Letter-Order: forged x")
    assert len(headers["Dead-Letter-Reason"]) <= 1000
    assert (headers["Dead-Letter-Order"], headers["Dead-Letter-Kind"]) == ("o 1", "poison")
    assert "Dead-Letter-Replays" not in headers
    assert headers["ok"] == "e"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"Dead-Letter-Kind": None}, "no Dead-Letter-Kind"),
        ({"Dead-Letter-Kind": "tired"}, "its kind is 'tired'"),
        ({"Dead-Letter-Subject": None}, "no Dead-Letter-Subject"),
        ({"Dead-Letter-Sequence": "first"}, "first"),
        ({"Dead-Letter-Time": "9" * 25}, "its time is '9999"),
        ({"Dead-Letter-Time": "-1"}, "its time is '-1'"),
    ],
)
def test_a_message_that_says_too_little_is_no_dead_letter(change: Mapping[str, str | None], says: str) -> None:
    """It is said what is missing."""
    headers: dict[str, str | None] = {**headers_of(DEATH, {}), **change}

    with pytest.raises(NoDeadLetterError, match=f"message 5 is no dead letter: .*{says}"):
        letter_in(5, {name: value for name, value in headers.items() if value is not None}, PAYLOAD)


# In and out.


class Shop:
    """The broker with the shop's streams, an office to bury in, and what people work with."""

    def __init__(self, connection: Connection, publisher: Publisher, tracer: LeanTracer, metrics: Metrics) -> None:
        self.publisher = publisher
        self.tracer = tracer
        self.office = DeadLetterOffice(connection, Announcer(tracer, publisher), metrics)
        self.dead = DeadLetterStream(connection, publisher)
        self._connection = connection

    async def order(self, *, message_id: str = "order-created:o1", headers: Mapping[str, str] | None = None) -> int:
        """An order in the stream; its sequence there."""
        ack = await self.publisher.publish(
            topology.ORDERS_CREATED, PAYLOAD, message_id=message_id, headers=headers or {}, deadline_s=5.0
        )
        return ack.sequence

    async def bury(
        self,
        sequence: int,
        *,
        reason: str = "amount_minor=-5 is negative",
        kind: DeadLetterKind = "poison",
        order_id: str = "o1",
        consumer: str = "payment-processor",
        stored_ns: int = 1,
    ) -> None:
        """Give up a stored message."""
        headers, payload = await self.stored("ORDERS", sequence)
        delivery = SimpleNamespace(
            stream="ORDERS",
            consumer=consumer,
            sequence=sequence,
            subject=topology.ORDERS_CREATED,
            times_delivered=3,
            headers=headers,
            payload=payload,
            stored_ns=stored_ns,
        )
        await self.office.bury(cast("Delivery", delivery), reason=reason, kind=kind, order_id=order_id)

    async def stored(self, stream: str, sequence: int) -> tuple[Mapping[str, str], bytes]:
        """Headers and payload of a stored message."""
        message = (await self._api(f"MSG.GET.{stream}", {"seq": sequence}))["message"]
        assert isinstance(message, dict)
        return headers_in(base64.b64decode(message.get("hdrs", ""))), base64.b64decode(message.get("data", ""))

    async def messages(self, stream: str) -> int:
        """How many messages a stream holds."""
        state = (await self._api(f"INFO.{stream}", {}))["state"]
        assert isinstance(state, dict)
        return int(state["messages"])

    async def delete(self, stream: str, sequence: int | None = None) -> None:
        """A message is gone, or all of the stream."""
        if sequence is None:
            await self._api(f"DELETE.{stream}", {})
        else:
            await self._api(f"MSG.DELETE.{stream}", {"seq": sequence})

    async def letters(self) -> list[DeadLetter | Stray]:
        """All there are."""
        return [each async for each in self.dead.letters()]

    async def _api(self, what: str, body: dict[str, object]) -> dict[str, object]:
        answer = await self._connection.request(f"$JS.API.STREAM.{what}", msgspec.json.encode(body), within_s=5.0)
        found: dict[str, object] = json.loads(answer)
        return found


@pytest_asyncio.fixture
async def shop(connection: Connection, metrics: Metrics) -> AsyncIterator[Shop]:
    """The shop's streams on a real broker."""
    await topology.ensure(connection, ())
    publisher = Publisher(connection, metrics=metrics)
    await publisher.start()
    quiet = TelemetrySettings(service_name="payments", endpoint=None, spool_directory=None)
    async with Telemetry(quiet, metrics) as telemetry:
        yield Shop(connection, publisher, telemetry.tracer, metrics)


async def test_a_buried_message_is_kept_byte_by_byte_with_its_death(shop: Shop, metrics: Metrics) -> None:
    """Under the consumer's own subject, in the trace of the order."""
    sequence = await shop.order(headers={"traceparent": TRACEPARENT})
    with shop.tracer.start_as_current_span("process orders.created") as processing:
        await shop.bury(sequence, reason="so said\nthe codec: grün")

    headers, payload = await shop.stored("DEADLETTERS", 1)
    (dead,) = await shop.letters()
    assert isinstance(dead, DeadLetter)
    assert payload == dead.payload == PAYLOAD
    assert headers["Nats-Msg-Id"] == f"dead:ORDERS:payment-processor:{sequence}:1"
    assert headers["Dead-Letter-Traceparent"] == TRACEPARENT
    assert f"{processing.get_span_context().trace_id:032x}" in headers["traceparent"]
    assert (dead.number, dead.death.kind, dead.death.reason) == (1, "poison", "so said the codec: grün")
    assert (dead.death.stream, dead.death.sequence, dead.death.subject) == ("ORDERS", sequence, "orders.created")
    assert (dead.death.consumer, dead.death.deliveries, dead.death.order_id) == ("payment-processor", 3, "o1")
    assert int(metrics.counter("dead_letters", "", label="kind", value="poison").value) == 1


async def test_a_message_buried_twice_is_one_dead_letter_for_each_consumer(shop: Shop) -> None:
    """Its term was lost and it was delivered again; another consumer's death of it is another matter."""
    sequence = await shop.order()
    await shop.bury(sequence)
    await shop.bury(sequence, kind="exhausted")
    await shop.bury(sequence, consumer="order-projection")

    letters = await shop.letters()

    assert [cast("DeadLetter", each).death.consumer for each in letters] == ["payment-processor", "order-projection"]


async def test_what_cannot_be_buried_must_be_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever buries hears of it, and keeps the message."""
    monkeypatch.setattr(office, "BURY_WITHIN_S", 0.3)
    sequence = await shop.order()
    await shop.delete("DEADLETTERS")

    with pytest.raises(PublishUnknownError):
        await shop.bury(sequence)


async def test_a_replayed_message_is_what_it_was(shop: Shop) -> None:
    """The same bytes, unknown fields and all, with its trace; stored anew although the broker knows its id."""
    sequence = await shop.order(headers={"traceparent": TRACEPARENT, "Colour": "grün"})
    await shop.bury(sequence)
    (dead,) = await shop.letters()
    assert isinstance(dead, DeadLetter)

    ack = await shop.dead.replay(dead)

    headers, payload = await shop.stored("ORDERS", ack.sequence)
    assert (ack.stream, ack.duplicate, ack.sequence) == ("ORDERS", False, sequence + 1)
    assert payload == PAYLOAD
    assert headers == {
        "traceparent": TRACEPARENT,
        "Colour": "grün",
        "Nats-Msg-Id": "replay:1:1:order-created:o1",
    }
    assert await shop.letters() == []


async def test_a_replay_killed_before_the_dead_letter_was_removed_loses_and_doubles_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead letter is still there; replaying it again stores nothing and removes it."""
    await shop.bury(await shop.order())
    (dead,) = await shop.letters()
    assert isinstance(dead, DeadLetter)

    async def killed(_self: DeadLetterStream, _number: int) -> bool:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(DeadLetterStream, "remove", killed)
        with pytest.raises(SystemExit):
            await shop.dead.replay(dead)
    (still,) = await shop.letters()
    assert isinstance(still, DeadLetter)
    ack = await shop.dead.replay(still)

    assert (ack.duplicate, await shop.messages("ORDERS"), await shop.letters()) == (True, 2, [])


async def test_a_replay_that_cannot_be_removed_says_what_is_stored(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how not to store it twice."""
    await shop.bury(await shop.order())
    (dead,) = await shop.letters()
    assert isinstance(dead, DeadLetter)

    async def unanswered(_self: DeadLetterStream, _number: int) -> bool:
        raise RequestError("no answer")

    monkeypatch.setattr(DeadLetterStream, "remove", unanswered)
    with pytest.raises(ReplayError, match=r"stored as 2 of ORDERS, but could not be removed: no answer; .* 120 s"):
        await shop.dead.replay(dead)


async def test_a_message_that_dies_again_can_be_replayed_again(shop: Shop) -> None:
    """A new death under a new number, and a new id for the next replay, all within the dedup window."""
    sequence = await shop.order()
    for number in (1, 2, 3):
        await shop.bury(sequence)
        (dead,) = await shop.letters()
        assert isinstance(dead, DeadLetter)
        assert dead.replay_id == f"replay:{number}:{number}:order-created:o1"
        sequence = (await shop.dead.replay(dead)).sequence

    assert (await shop.messages("ORDERS"), await shop.messages("DEADLETTERS")) == (4, 0)


async def test_what_a_stream_made_anew_holds_at_the_same_place_is_another_dead_letter(shop: Shop) -> None:
    """P14: it would be terminated as buried, and nobody would have it."""
    sequence = await shop.order()
    await shop.bury(sequence, stored_ns=1)
    await shop.bury(sequence, stored_ns=1)
    await shop.bury(sequence, stored_ns=2)

    assert await shop.messages("DEADLETTERS") == 2


async def test_a_message_that_two_consumers_gave_up_is_replayed_once(shop: Shop) -> None:
    """The replay reaches both; two of them would die four times, and each time twice as often."""
    sequence = await shop.order()
    await shop.bury(sequence)
    await shop.bury(sequence, consumer="order-projection")

    acks = [await shop.dead.replay(dead) for dead in await shop.letters() if isinstance(dead, DeadLetter)]

    assert [(ack.sequence, ack.duplicate) for ack in acks] == [(2, False), (2, True)]
    assert (await shop.messages("ORDERS"), await shop.messages("DEADLETTERS")) == (2, 0)


async def test_a_replay_that_lands_in_another_stream_keeps_its_dead_letter(shop: Shop) -> None:
    """The subject belongs to another stream than it did: people decide."""
    await shop.bury(await shop.order())
    (dead,) = await shop.letters()
    assert isinstance(dead, DeadLetter)
    moved = letter_in(dead.number, {**dead.headers, "Dead-Letter-Stream": "OLD"}, PAYLOAD)

    with pytest.raises(ReplayError, match=r"stored in ORDERS now \(at 2\) and was in OLD"):
        await shop.dead.replay(moved)

    assert len(await shop.letters()) == 1


async def test_a_message_too_large_to_carry_its_death_is_left_where_it_is(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead letter points to it, and its replay takes it from there; if it is gone, nothing is published."""
    monkeypatch.setattr(office, "MARGIN_BYTES", 1024 * 1024)
    sequence = await shop.order(headers={"Colour": "green"})
    await shop.bury(sequence)
    await shop.bury(sequence, consumer="order-projection")
    first, second = await shop.letters()
    assert isinstance(first, DeadLetter)
    assert isinstance(second, DeadLetter)

    assert (await shop.stored("DEADLETTERS", 1))[1] == b""
    assert first.payload == PAYLOAD
    ack = await shop.dead.replay(first)
    assert await shop.stored("ORDERS", ack.sequence) == (
        {"Colour": "green", "Nats-Msg-Id": "replay:1:1:order-created:o1"},
        PAYLOAD,
    )
    await shop.delete("ORDERS", sequence)
    (again,) = await shop.letters()
    assert isinstance(again, DeadLetter)
    with pytest.raises(ReplayError, match="is gone from there"):
        await shop.dead.replay(again)


# The command.


def command(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command, carried out as people do."""
    return subprocess.run(
        [sys.executable, "-m", "system.deadletters", *arguments],
        env={"PATH": "", "NATS_URL": broker.url, "NATS_CONNECT_TIMEOUT_S": "5", "PYTHONIOENCODING": "utf-8"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_the_command_lists_and_shows_what_there_is(shop: Shop, broker: Broker) -> None:
    """For people, and as JSON; what others wrote cannot steer the terminal."""
    sequence = await shop.order(headers={"traceparent": TRACEPARENT})
    await shop.bury(sequence, reason="bad \x9b2J luck \u202e", order_id="")
    await shop.bury(sequence, consumer="order-projection", kind="exhausted")

    table, document = command(broker, "list"), command(broker, "list", "--json")
    short, shown, absent = (
        command(broker, "list", "--max", "1"),
        command(broker, "show", "2"),
        command(broker, "show", "9"),
    )

    assert [each.returncode for each in (table, document, short, shown, absent)] == [0, 0, 0, 0, 1], table.stderr
    _, first, second, total = table.stdout.splitlines()
    assert first.split()[2:6] == ["poison", "payment-processor", "3", "-"]
    assert second.split()[2:6] == ["exhausted", "order-projection", "3", "o1"]
    assert total == "2 dead letters"
    assert "\\u202e" in first
    found = json.loads(document.stdout)
    assert (found["total"], [each["seq"] for each in found["dead_letters"]]) == (2, [1, 2])
    assert found["dead_letters"][1] == {
        "seq": 2,
        "time": found["dead_letters"][1]["time"],
        "kind": "exhausted",
        "consumer": "order-projection",
        "deliveries": 3,
        "order_id": "o1",
        "reason": "amount_minor=-5 is negative",
        "subject": "orders.created",
        "stream": "ORDERS",
        "sequence": sequence,
        "size_bytes": len(PAYLOAD),
    }
    assert short.stdout.endswith("2 dead letters, 1 shown\n")
    for expected in ("OrderCreated:", "amount_minor: 1250", '51: "new"', TRACEPARENT, "replay:1:1:order-created:o1"):
        assert expected in shown.stdout
    assert "there is no dead letter 9" in absent.stderr


async def test_the_command_replays_and_drops_what_it_is_told(shop: Shop, broker: Broker) -> None:
    """One that is not there does not keep the others, and makes it exit 1."""
    for n in range(4):
        await shop.bury(await shop.order(message_id=f"m{n}"))

    replayed, dropped = command(broker, "replay", "2", "9", "1"), command(broker, "drop", "3", "3")
    rest = command(broker, "replay", "--all")
    nothing = command(broker, "drop", "--all")

    assert (replayed.returncode, replayed.stdout) == (1, "2: replayed as 5 of ORDERS\n1: replayed as 6 of ORDERS\n")
    assert "9: there is no dead letter 9" in replayed.stderr
    assert (dropped.returncode, dropped.stdout) == (0, "3: dropped\n")
    assert (rest.returncode, rest.stdout) == (0, "4: replayed as 7 of ORDERS\n")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert (await shop.messages("ORDERS"), await shop.messages("DEADLETTERS")) == (7, 0)


async def test_what_is_no_dead_letter_is_said_to_be_none_and_can_be_dropped(shop: Shop, broker: Broker) -> None:
    """Somebody published into the stream by hand."""
    await shop.publisher.publish("deadletters.by-hand", b"\xff", message_id="x", headers={}, deadline_s=5.0)
    await shop.bury(await shop.order())

    listed, replayed = command(broker, "list"), command(broker, "replay", "--all")
    dropped = command(broker, "drop", "--all")

    assert (listed.returncode, replayed.returncode, dropped.returncode) == (0, 1, 0)
    assert "message 1 is no dead letter: it has no Dead-Letter-Kind" in listed.stderr
    assert replayed.stdout == "2: replayed as 2 of ORDERS\n"
    assert dropped.stdout == "1: dropped\n"


async def test_a_broker_without_a_stream_has_no_dead_letters(broker: Broker) -> None:
    """Nobody ever buried one, or a service started."""
    listed, dropped = command(broker, "list"), command(broker, "drop", "1")

    assert (listed.returncode, listed.stdout) == (0, "0 dead letters\n")
    assert dropped.returncode == 1
    assert dropped.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bury",),
        ("show",),
        ("show", "0"),
        ("show", "1", "2"),
        ("replay",),
        ("replay", "1", "--all"),
        ("drop", "-1"),
        ("list", "--max", "0"),
    ],
)
def test_a_command_that_makes_no_sense_exits_64(arguments: tuple[str, ...]) -> None:
    """Before anybody is connected to."""
    result = subprocess.run(
        [sys.executable, "-m", "system.deadletters", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stdout) == (64, "")
    assert "usage:" in result.stderr


def test_a_broker_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """Exit code 1; and 64 for an address that is none."""
    away = Broker(tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "system.deadletters", "list"],
        env={"PATH": "", "NATS_URL": away.url, "NATS_CONNECT_TIMEOUT_S": "0.2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    assert away.url in result.stderr
    assert "Traceback" not in result.stderr


def test_what_would_steer_a_terminal_is_spelled_out() -> None:
    """Letters of all alphabets stay."""
    assert printable("grün 中 \x1b[2J\r\u202e") == "grün 中 \\x1b[2J\\r\\u202e"
