"""Publishing into a stream, where done means that the server said so.

Promises: `publish` returns only after the server's PubAck; an attempt whose ack does not come is repeated with the same
Nats-Msg-Id, so that the stream holds the message once (within its dedup window); a new connection makes every waiting
publish try again at once; at most `outstanding_max` are under way, and at most `WAITING_MAX` wait for their turn. When
the deadline comes first, the error says what is true: `PublishUnknownError` if the message left and nobody can tell
whether it is stored, `PublishUnavailableError` if it never left.

All publishes share one inbox for their acks and one timer for their deadlines.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from system.jetstream.connection import Connection
from system.jetstream.errors import NotConnectedError
from system.jetstream.wire import Message, header_block, publish_frame
from system.metrics import Metrics

OUTSTANDING_MAX = 256
WAITING_MAX = 4096
ATTEMPT_TIMEOUT_S = 1.0
PAUSE_S = 0.1
"""Wait before an attempt that the connection did not take, or that the server cannot store yet, is repeated."""
SWEEP_EVERY_S = 0.05
"""How late a deadline may be noticed. Looking at 256 publishes takes 20 µs."""

_LATER = frozenset({429, 503})
"""What the server answers when it cannot store anything now: too many requests, no leader, no stream yet."""
_NOT_STORED = frozenset({10023, 10077})
"""Its codes for a stream or a disk that is full: certainly not stored, and waiting makes no room."""
_NO_RESPONDERS = "503"


class PublishUnknownError(Exception):
    """No ack came within the deadline: the message may be stored or not."""


class PublishRefusedError(Exception):
    """The server refuses the message: it is not stored."""


class PublishUnavailableError(Exception):
    """The message never left: it is not stored. Trying later may help."""


class PubAck(msgspec.Struct, frozen=True, kw_only=True):
    """The server has the message. duplicate: it had it before, at this very sequence."""

    stream: str
    sequence: int
    duplicate: bool


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class _Publish:
    """One message under way, or waiting for its turn. again_at_s: when it is sent again unless an ack came."""

    __slots__ = ("again_at_s", "attempts", "deadline_at_s", "frame", "future", "what")

    def __init__(self, frame: bytes, future: asyncio.Future[PubAck], deadline_at_s: float, what: str) -> None:
        self.frame = frame
        self.future = future
        self.deadline_at_s = deadline_at_s
        self.what = what
        self.again_at_s = 0.0
        self.attempts = 0


class Publisher:
    """Publishes over one connection."""

    _loop: asyncio.AbstractEventLoop  # kept, because asking for it costs a system call (getpid)

    def __init__(
        self,
        connection: Connection,
        *,
        metrics: Metrics,
        outstanding_max: int = OUTSTANDING_MAX,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
    ) -> None:
        self._connection = connection
        self._outstanding_max = outstanding_max
        self._attempt_timeout_s = attempt_timeout_s
        self._inbox = connection.new_inbox()
        self._tokens = itertools.count(1)
        self._under_way: dict[str, _Publish] = {}
        self._waiting: OrderedDict[str, _Publish] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self._retries = metrics.counter("publish_retries", "Publishes repeated because no ack came")
        self._duplicates = metrics.counter(
            "publish_duplicates", "Publishes of which the server had the message already"
        )
        self._outstanding = metrics.gauge("publishes_outstanding", "Publishes under way, which wait for their ack")
        self._queued = metrics.gauge("publishes_waiting", "Publishes that wait until fewer are under way")
        self._seconds = metrics.histogram("publish_seconds", "Time from a publish to the server's ack")

    async def start(self) -> None:
        """Subscribe to the inbox; call once, before the first publish."""
        self._loop = asyncio.get_running_loop()
        await self._connection.subscribe(f"{self._inbox}.*", self._on_acks)
        self._connection.on_connected(self._retry_all)

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str], deadline_s: float
    ) -> PubAck:
        """Store one message, once, and return the server's ack.

        Raises `PublishRefusedError` or `PublishUnavailableError` if it is certainly not stored, and
        `PublishUnknownError` if nobody can tell. `ValueError` for a subject or a header that cannot be sent.
        """
        token = str(next(self._tokens))
        block = header_block({**headers, "Nats-Msg-Id": message_id})
        frame = publish_frame(subject, payload, reply=f"{self._inbox}.{token}", block=block)
        began_s = time.monotonic()
        future: asyncio.Future[PubAck] = self._loop.create_future()
        publish = _Publish(frame, future, began_s + deadline_s, f"{message_id} on {subject}")
        size, size_max = len(block) + len(payload), self._connection.payload_max_bytes
        if size > size_max > 0:
            raise PublishRefusedError(f"{publish.what} has {size} bytes with its headers, the server takes {size_max}")
        if len(self._under_way) < self._outstanding_max:
            self._begin(token, publish, began_s)
        elif len(self._waiting) < WAITING_MAX:
            self._waiting[token] = publish
            self._queued.value = len(self._waiting)
        else:
            raise PublishUnavailableError(f"{publish.what} was not sent: {WAITING_MAX} publishes wait already")
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_EVERY_S, self._sweep)
        try:
            ack = await future
        finally:
            self._forget(token)
        self._seconds.observe(time.monotonic() - began_s)
        if ack.duplicate:
            self._duplicates.add()
        return ack

    def _begin(self, token: str, publish: _Publish, now_s: float) -> None:
        self._under_way[token] = publish
        self._outstanding.value = len(self._under_way)
        self._attempt(publish, now_s)

    def _attempt(self, publish: _Publish, now_s: float) -> None:
        """Send; all attempts of one publish share a token, so a late answer to an earlier one counts."""
        if publish.future.done():
            return
        try:
            self._connection.post(publish.frame)
        except NotConnectedError:
            publish.again_at_s = now_s + PAUSE_S
        else:
            if publish.attempts:
                self._retries.add()
            publish.attempts += 1
            publish.again_at_s = now_s + self._attempt_timeout_s

    def _forget(self, token: str) -> None:
        """A publish has ended, and the one that waits longest may begin."""
        if self._under_way.pop(token, None) is None:
            self._waiting.pop(token, None)
        else:
            while self._waiting and len(self._under_way) < self._outstanding_max:
                next_token, publish = self._waiting.popitem(last=False)
                if not publish.future.done():  # its deadline came, and its caller is about to be told so
                    self._begin(next_token, publish, time.monotonic())
        self._outstanding.value = len(self._under_way)
        self._queued.value = len(self._waiting)

    def _sweep(self) -> None:
        """Look at everything that has no ack yet: too late, or time to try again?"""
        now_s = time.monotonic()
        is_connected = self._connection.is_connected
        for publish in self._under_way.values():
            if now_s >= publish.deadline_at_s:
                _expire(publish)
            elif is_connected and now_s >= publish.again_at_s:
                self._attempt(publish, now_s)
        for publish in self._waiting.values():
            if now_s >= publish.deadline_at_s:
                _expire(publish)
        is_idle = not self._under_way and not self._waiting
        self._sweeper = None if is_idle else self._loop.call_later(SWEEP_EVERY_S, self._sweep)

    def _retry_all(self) -> None:
        """Answers to what the old connection carried will not come."""
        now_s = time.monotonic()
        for publish in self._under_way.values():
            self._attempt(publish, now_s)

    def _on_acks(self, messages: list[Message]) -> None:
        for message in messages:
            self._on_ack(message)

    def _on_ack(self, message: Message) -> None:
        publish = self._under_way.get(message.subject[len(self._inbox) + 1 :])
        if publish is None or publish.future.done():
            return
        if not message.payload and message.headers.get("Status") == _NO_RESPONDERS:
            # No responders: no stream listens on the subject, or it is not up yet.
            publish.again_at_s = time.monotonic() + PAUSE_S
            return
        try:
            answer = _decode_answer(message.payload)
        except msgspec.DecodeError as error:
            publish.future.set_exception(
                PublishUnknownError(
                    f"the answer to {publish.what} is no PubAck, so whether it is stored is unknown: {error}"
                )
            )
            return
        if answer.error is None:
            publish.future.set_result(PubAck(stream=answer.stream, sequence=answer.seq, duplicate=answer.duplicate))
        elif answer.error.code in _LATER and answer.error.err_code not in _NOT_STORED:
            publish.again_at_s = time.monotonic() + PAUSE_S
        else:
            refusal = f"the server refused {publish.what}: {answer.error.description} ({answer.error.err_code})"
            if publish.attempts > 1:
                # It answers one attempt; another may be on its way into the stream, or in it.
                publish.future.set_exception(
                    PublishUnknownError(f"{refusal}, after an attempt whose ack did not come: it may be stored")
                )
            else:
                publish.future.set_exception(PublishRefusedError(refusal))


def _expire(publish: _Publish) -> None:
    if publish.future.done():
        return
    if publish.attempts:
        publish.future.set_exception(
            PublishUnknownError(f"no ack for {publish.what} in time: whether it is stored is unknown")
        )
    else:
        publish.future.set_exception(PublishUnavailableError(f"{publish.what} was not sent in time: it is not stored"))
