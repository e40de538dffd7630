"""The broker's own records: what it stored, what its consumers still owe, and what it complained about.

The only module of the harness that speaks NATS. It connects directly, never through a proxy, so that a fault on a link
cannot reach the evidence. Advisories go out on core NATS and are lost when nobody listens; `capture_advisories` puts a
stream under them before the run begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats.errors
from nats.aio.client import Client
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError

from harness.collection.broker_clock import BrokerClock
from harness.environment.concurrency import shielded
from harness.environment.nats.half_open import hang_up
from harness.errors import EnvironmentFailedError
from harness.records import Advisory, Channel, Consumer, Message, SpanId, TraceId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from harness.environment.nats.access import BrokerAccess

ADVISORIES = "STORMPROOF_ADVISORIES"
_ADVISORY_SUBJECTS = ["$JS.EVENT.ADVISORY.CONSUMER.>", "$JS.EVENT.ADVISORY.STREAM.>"]
"""What happened to streams and consumers; not the audit of every API call, most of which are the harness's own."""

SILENCE = (nats.errors.Error, APIError, OSError, TimeoutError)
"""How a broker that is gone, or a stream that is, shows: evidence is then missing, and says so."""

_CONNECT_WITHIN_S = 5
_FETCH_MESSAGES = 500
_FETCH_WITHIN_S = 5.0
_TRACEPARENT_PARTS = 4
_TRACE_HEX = 32
_SPAN_HEX = 16

KeyOf = Callable[[str, Mapping[str, str], bytes], "str | None"]
"""Adapter's function: (subject, headers, payload) to the key the message is about, or None."""


class UnlistedError(Exception):
    """A cluster does not say how some consumers stand: who leads them does not answer."""


class BrokerRecords:
    """Reads a broker's streams and consumers over one direct connection."""

    def __init__(self, client: Client, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Use an open connection. now_ns: our clock, by which all times are told."""
        self._client = client
        self._jetstream: JetStreamContext = client.jetstream(timeout=_FETCH_WITHIN_S)
        self._clock = BrokerClock(self._ask, now_ns=now_ns)

    async def capture_advisories(self, *, replicas: int = 1) -> None:
        """Put a stream under the JetStream advisories, so that none is lost. replicas: how many servers hold it."""
        await self._jetstream.add_stream(
            StreamConfig(
                name=ADVISORIES,
                subjects=_ADVISORY_SUBJECTS,
                storage=StorageType.FILE,
                retention=RetentionPolicy.LIMITS,
                num_replicas=replicas,
                no_ack=True,
            )
        )
        await self._clock.note(ADVISORIES)

    async def remove_advisories(self) -> None:
        """Take that stream away again, from a broker that is somebody's own."""
        with contextlib.suppress(NotFoundError):
            await self._jetstream.delete_stream(ADVISORIES)

    async def ensure_unused(self, streams: tuple[str, ...]) -> None:
        """Raise EnvironmentFailedError when one of these streams was ever written to.

        The system would work on those messages, and be judged by them.
        """
        for stream in streams:
            try:
                last = (await self._jetstream.stream_info(stream)).state.last_seq
            except NotFoundError:
                continue
            if last:
                raise EnvironmentFailedError(
                    f"the stream {stream} was written to before this run (up to sequence {last}): the system would "
                    f"work on that and be judged by it; delete it (`nats stream rm {stream}`), "
                    "or give another account in --nats-url"
                )

    async def backlog(self, streams: tuple[str, ...]) -> int:
        """Return how many messages the durable consumers of these streams have not finished, delivered or not.

        A broker that does not answer owes for ever: at least 1.
        """
        total = 0
        for stream in streams:
            try:
                infos = await self._durables(stream)
            except NotFoundError:
                continue  # a stream that is not there owes nothing; `messages` says that it is missing
            except (*SILENCE, UnlistedError):
                return 1
            total += sum((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos)
        return total

    async def consumers(self, streams: tuple[str, ...]) -> tuple[list[Consumer], Channel]:
        """Describe every durable consumer of these streams."""
        rows: list[Consumer] = []
        gaps = []
        for stream in streams:
            try:
                infos = await self._durables(stream)
            except (*SILENCE, UnlistedError) as error:
                gaps.append(f"the consumers of {stream} could not be read: {_spelled(error)}")
                continue
            rows.extend(_consumer(stream, info) for info in infos)
        return rows, Channel(
            name="consumers",
            expected=None if gaps else len(rows),
            received=len(rows),
            complete=not gaps,
            why="; ".join(gaps),
        )

    async def messages(self, streams: tuple[str, ...], key_of: KeyOf) -> tuple[list[Message], Channel]:
        """Read every message of these streams back, by sequence. Their times are told by our clock."""
        rows: list[Message] = []
        expected = 0
        gaps = [] if streams else ["no stream is named"]
        clocks: set[str] = set()
        for stream in streams:
            before = len(rows)
            try:
                state = (await self._jetstream.stream_info(stream)).state
                expected += state.last_seq
                difference = await self._clock.difference(stream)
                stored = self._read(stream, state.messages)
                rows.extend([_message(stream, each, key_of, difference.ahead_ns) async for each in stored])
            except SILENCE as error:
                gaps.append(f"stream {stream} could not be read: {_spelled(error)}")
                continue
            read = len(rows) - before
            if read != state.last_seq:
                gaps.append(f"stream {stream} was given {state.last_seq} messages, {read} could be read back")
            clocks.add(difference.sentence())
        try:
            gaps += filter(None, [await self._clock.why_unsure()])
        except SILENCE as error:
            gaps.append(f"the broker's clock could not be read: {_spelled(error)}")
        why = "; ".join([*gaps, *sorted(clocks - {""})])
        return rows, Channel(name="messages", expected=expected, received=len(rows), complete=not gaps, why=why)

    async def keys(self, streams: tuple[str, ...], key_of: KeyOf) -> set[str]:
        """Return every key that a stored message is about."""
        rows, _channel = await self.messages(streams, key_of)
        return {row.key for row in rows if row.key is not None}

    async def advisories(self) -> tuple[list[Advisory], Channel]:
        """Read the captured advisories back."""
        try:
            expected = (await self._jetstream.stream_info(ADVISORIES)).state.messages
            ahead_ns = (await self._clock.difference(ADVISORIES)).ahead_ns
            rows = [
                Advisory(
                    subject=message.subject,
                    at_ns=_stored_ns(message) - ahead_ns,
                    body=message.data.decode("utf-8", "replace"),
                )
                async for message in self._read(ADVISORIES, expected)
            ]
        except SILENCE as error:
            why = f"what was captured could not be read: {_spelled(error)}"
            return [], Channel(name="advisories", expected=None, received=0, complete=False, why=why)
        return rows, Channel(
            name="advisories",
            expected=expected,
            received=len(rows),
            complete=len(rows) == expected,
            why="" if len(rows) == expected else f"{expected - len(rows)} could not be read",
        )

    async def _durables(self, stream: str) -> list[ConsumerInfo]:
        # Not nats-py's `consumers_info`: it reads the first page only, and does not say whom a cluster left out.
        found: list[ConsumerInfo] = []
        total = 1
        while len(found) < total:
            request = json.dumps({"offset": len(found)}).encode()
            page = json.loads(await self._ask(f"$JS.API.CONSUMER.LIST.{stream}", request))
            if "error" in page:
                APIError.from_error(page["error"])
            if page.get("missing"):
                raise UnlistedError(f"nobody answers for {', '.join(sorted(page['missing']))}")
            infos = page.get("consumers") or []
            found += [ConsumerInfo.from_response(info) for info in infos]
            total = page["total"] if infos else len(found)
        return [info for info in found if info.config.durable_name]

    async def _ask(self, subject: str, request: bytes = b"") -> bytes:
        return (await self._client.request(subject, request, timeout=_FETCH_WITHIN_S)).data

    async def _read(self, stream: str, count: int) -> AsyncIterator[Msg]:
        if count == 0:
            return
        subscription = await self._jetstream.pull_subscribe(
            ">",
            stream=stream,
            config=ConsumerConfig(
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.ALL,
                inactive_threshold=_FETCH_WITHIN_S * 2,
                mem_storage=True,
                filter_subject=None,
            ),
        )
        read = 0
        try:
            while read < count:
                try:
                    batch = await subscription.fetch(min(_FETCH_MESSAGES, count - read), timeout=_FETCH_WITHIN_S)
                except nats.errors.TimeoutError:
                    return
                for message in batch:
                    yield message
                read += len(batch)
        finally:
            await subscription.unsubscribe()


@asynccontextmanager
async def broker_records(access: BrokerAccess) -> AsyncIterator[BrokerRecords]:
    """Connect to the broker for the scope. Raises EnvironmentFailedError when it does not answer."""
    seen: list[Exception] = []

    async def note(error: Exception) -> None:
        # Kept for the sentence below only: later the broker may be killed on purpose, and a failed read says so itself.
        # What the broker said counts for more than that it then hung up.
        if not seen or not isinstance(error, OSError):
            seen[:] = [error]
        hang_up(client)

    client = Client()
    try:
        # Without this bound the first connection would be tried for ever, as every later one is.
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            await client.connect(
                list(access.urls),
                user=access.user,
                password=access.password,
                tls=access.tls_context(),
                name="stormproof-evidence",
                connect_timeout=_CONNECT_WITHIN_S,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]  # annotated as whole seconds, and slept as it is
                error_cb=note,
            )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        await shielded(client.close())
        why = _spelled(seen[0] if seen else error)
        raise EnvironmentFailedError(
            f"the broker at {access.url} does not let the harness in within {_CONNECT_WITHIN_S:g} s ({why}): "
            "look whether it runs, and whether URL and credentials are right"
        ) from error
    try:
        yield BrokerRecords(client)
    except (nats.errors.Error, APIError) as error:
        raise EnvironmentFailedError(
            f"the broker at {access.url} could not be asked for its records: {error!r}"
        ) from error
    finally:
        await shielded(client.close())


def _consumer(stream: str, info: ConsumerInfo) -> Consumer:
    return Consumer(
        stream=stream,
        name=info.config.durable_name or "",
        pending=info.num_pending or 0,
        ack_pending=info.num_ack_pending or 0,
        redelivered=info.num_redelivered or 0,
        delivered_sequence=info.delivered.stream_seq if info.delivered else 0,
        ack_floor_sequence=info.ack_floor.stream_seq if info.ack_floor else 0,
        config=json.dumps(info.config.as_dict(), default=str),
    )


def _spelled(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()


def _message(stream: str, message: Msg, key_of: KeyOf, ahead_ns: int) -> Message:
    headers = dict(message.headers or {})
    trace_id, span_id = trace_context({name.lower(): value for name, value in headers.items()}.get("traceparent", ""))
    return Message(
        stream=stream,
        sequence=message.metadata.sequence.stream,
        subject=message.subject,
        message_id=headers.get("Nats-Msg-Id"),
        stored_ns=_stored_ns(message) - ahead_ns,
        size_bytes=len(message.data),
        key=key_of(message.subject, headers, message.data),
        trace_id=trace_id,
        span_id=span_id,
        headers=json.dumps(headers),
    )


def _stored_ns(message: Msg) -> int:
    # The reply subject carries the exact time; nats-py's metadata.timestamp rounds it to microseconds.
    return int(message.reply.split(".")[-2])


def trace_context(traceparent: str) -> tuple[TraceId | None, SpanId | None]:
    """Parse a W3C traceparent; (None, None) when it is not one."""
    parts = traceparent.split("-")
    if len(parts) != _TRACEPARENT_PARTS or len(parts[1]) != _TRACE_HEX or len(parts[2]) != _SPAN_HEX:
        return None, None
    try:
        trace_id, span_id = int(parts[1], 16), int(parts[2], 16)
    except ValueError:
        return None, None
    return (TraceId(parts[1].lower()), SpanId(span_id)) if trace_id and span_id else (None, None)
