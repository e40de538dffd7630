"""Streams and durable consumers: created if they are not there, and checked if they are.

Promises: after `ensure_stream` and `ensure_consumer` the broker holds exactly the configuration asked for; one that
exists and differs raises `TopologyError` that says in what. Never changes or deletes anything that exists. Whoever
starts first creates; the same request from two processes is no conflict.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from datetime import datetime

import msgspec

from system.errors import StartError
from system.jetstream.connection import Connection
from system.jetstream.errors import RequestError

API_WITHIN_S = 2.0
ENSURE_WITHIN_S = 30.0
"""How long a broker may take to recover its streams before we stop asking."""
RETRY_PAUSE_S = 0.05

_STREAM_DIFFERS = 10058
_CONSUMER_DIFFERS = frozenset({10013, 10148})
_NOT_FOUND = 404
_UNAVAILABLE = 503
_NS = 1_000_000_000


class TopologyError(StartError):
    """The broker holds a stream or consumer that is not as this service needs it, or cannot hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """A stream on file storage that keeps everything.

    dedup_window_s: how long a Nats-Msg-Id is remembered. replicas: how many servers keep it, and its consumers.
    """

    name: str
    subject: str
    dedup_window_s: float
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acks.

    ack_wait_s: how long a delivery may stay unanswered. ack_pending_max: deliveries unanswered at once, over all
    replicas of a service. There is no limit to deliveries and no BackOff: its first step would override ack_wait_s.
    """

    stream: str
    name: str
    subject: str
    ack_wait_s: float
    ack_pending_max: int


class _StreamConfig(msgspec.Struct):
    name: str
    subjects: list[str]
    duplicate_window: int
    num_replicas: int
    retention: str = "limits"
    storage: str = "file"
    discard: str = "old"
    max_consumers: int = -1
    max_msgs: int = -1
    max_bytes: int = -1
    max_age: int = 0
    max_msgs_per_subject: int = -1
    max_msg_size: int = -1


class _ConsumerConfig(msgspec.Struct):
    durable_name: str
    name: str
    filter_subject: str
    ack_wait: int
    max_ack_pending: int
    ack_policy: str = "explicit"
    deliver_policy: str = "all"
    replay_policy: str = "instant"
    max_deliver: int = -1


class _CreateConsumer(msgspec.Struct):
    stream_name: str
    config: _ConsumerConfig
    action: str = "create"


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _StoredMessage(msgspec.Struct):
    seq: int
    time: datetime
    data: str = ""


class _Floor(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _Reply(msgspec.Struct):
    error: _Error | None = None
    config: dict[str, object] = {}
    message: _StoredMessage | None = None
    ack_floor: _Floor = _Floor()


async def ensure_stream(connection: Connection, spec: StreamSpec) -> None:
    """The stream exists as specified when this returns."""
    wanted = _StreamConfig(
        name=spec.name,
        subjects=[spec.subject],
        duplicate_window=round(spec.dedup_window_s * _NS),
        num_replicas=spec.replicas,
    )
    reply = await _ask_until_available(connection, f"$JS.API.STREAM.CREATE.{spec.name}", msgspec.json.encode(wanted))
    if reply.error is None:
        return
    if reply.error.err_code == _STREAM_DIFFERS:
        existing = await _ask_until_available(connection, f"$JS.API.STREAM.INFO.{spec.name}", b"")
        raise TopologyError(f"stream {spec.name} exists but differs: {_difference(wanted, existing.config)}")
    raise TopologyError(f"stream {spec.name} cannot be created: {reply.error.description}")


async def ensure_consumer(connection: Connection, spec: ConsumerSpec) -> None:
    """The consumer exists as specified when this returns; a new one starts at the first message of its stream."""
    wanted = _ConsumerConfig(
        durable_name=spec.name,
        name=spec.name,
        filter_subject=spec.subject,
        ack_wait=round(spec.ack_wait_s * _NS),
        max_ack_pending=spec.ack_pending_max,
    )
    reply = await _ask_until_available(
        connection,
        f"$JS.API.CONSUMER.CREATE.{spec.stream}.{spec.name}.{spec.subject}",
        msgspec.json.encode(_CreateConsumer(stream_name=spec.stream, config=wanted)),
    )
    if reply.error is None:
        return
    if reply.error.err_code in _CONSUMER_DIFFERS:
        existing = await _ask_until_available(connection, f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.name}", b"")
        raise TopologyError(
            f"consumer {spec.name} on {spec.stream} exists but differs: {_difference(wanted, existing.config)}"
        )
    raise TopologyError(f"consumer {spec.name} on {spec.stream} cannot be created: {reply.error.description}")


async def stored_payload(connection: Connection, stream: str, sequence: int) -> bytes:
    """The payload of the message stored at a sequence; `RequestError` if it cannot be read."""
    reply = await _ask(connection, f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode({"seq": sequence}))
    if reply.error is not None or reply.message is None:
        reason = reply.error.description if reply.error else "an empty answer"
        raise RequestError(f"message {sequence} of {stream} cannot be read: {reason}")
    return base64.b64decode(reply.message.data)


async def last_stored(connection: Connection, stream: str, subject: str) -> int:
    """The sequence of the newest message on a subject, 0 if there is none; `RequestError` if it cannot be had."""
    found = await _stored(connection, stream, {"last_by_subj": subject})
    return 0 if found is None else found.seq


async def stored_since(connection: Connection, stream: str, subject: str, first: int) -> datetime | None:
    """When the oldest message on a subject at or behind a sequence was stored, None if there is none."""
    found = await _stored(connection, stream, {"seq": first, "next_by_subj": subject})
    return None if found is None else found.time


async def acknowledged(connection: Connection, spec: ConsumerSpec) -> int:
    """Up to which sequence a consumer's messages are all acknowledged, 0 if there is no such consumer."""
    return (await _look(connection, f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.name}", b"")).ack_floor.stream_seq


async def _stored(connection: Connection, stream: str, which: dict[str, object]) -> _StoredMessage | None:
    return (await _look(connection, f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode(which))).message


async def _look(connection: Connection, subject: str, payload: bytes) -> _Reply:
    """The reply, which may be that there is nothing."""
    reply = await _ask(connection, subject, payload)
    if reply.error is not None and reply.error.code != _NOT_FOUND:
        raise RequestError(f"{subject}: {reply.error.description}")
    return reply


async def _ask_until_available(connection: Connection, subject: str, payload: bytes) -> _Reply:
    """Ask again while the broker is away or still recovers; the bound is `ENSURE_WITHIN_S`."""
    last = "no connection"
    try:
        async with asyncio.timeout(ENSURE_WITHIN_S):
            while True:
                await connection.wait_connected()
                try:
                    reply = await _ask(connection, subject, payload)
                except RequestError as error:
                    last = str(error)
                else:
                    if reply.error is None or reply.error.code != _UNAVAILABLE:
                        return reply
                    last = reply.error.description
                await asyncio.sleep(RETRY_PAUSE_S)
    except TimeoutError:
        raise RequestError(f"the broker did not answer {subject} within {ENSURE_WITHIN_S:g} s: {last}") from None


async def _ask(connection: Connection, subject: str, payload: bytes) -> _Reply:
    answer = await connection.request(subject, payload, within_s=API_WITHIN_S)
    try:
        return msgspec.json.decode(answer, type=_Reply)
    except msgspec.DecodeError as error:
        raise RequestError(f"{subject}: the answer makes no sense: {error}") from None


def _difference(wanted: msgspec.Struct, existing: dict[str, object]) -> str:
    differing = [
        f"{name} is {existing.get(name)!r}, wanted {value!r}"
        for name, value in msgspec.structs.asdict(wanted).items()
        if existing.get(name) != value
    ]
    return "; ".join(differing) or "in a setting this service does not know"
