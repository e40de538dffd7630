"""Publishing into a stream, where done means that the server said so.

Promises: `publish` returns only after the server's PubAck; an attempt whose ack does not come is repeated with the same
Nats-Msg-Id, so that the stream holds the message once (within its dedup window); a new connection makes every waiting
publish try again at once; at most `OUTSTANDING_MAX` are under way. When the deadline comes first, `PublishUnknownError`
says what is true: nobody can tell whether the message is stored.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from system.jetstream.connection import Connection, Message, NotConnectedError
from system.metrics import Metrics

OUTSTANDING_MAX = 256
ATTEMPT_TIMEOUT_S = 1.0
UNAVAILABLE_PAUSE_S = 0.1
"""Wait after the server said that it is there but cannot store yet, as while it recovers its streams."""

_UNAVAILABLE = 503


class PublishUnknownError(Exception):
    """No ack came within the deadline: the message may be stored or not."""


class PublishRefusedError(Exception):
    """The server refused the message: it is not stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PubAck:
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


class Publisher:
    """Publishes with one inbox for all acks."""

    def __init__(
        self, connection: Connection, *, metrics: Metrics, attempt_timeout_s: float = ATTEMPT_TIMEOUT_S
    ) -> None:
        self._connection = connection
        self._attempt_timeout_s = attempt_timeout_s
        self._inbox = connection.new_inbox()
        self._tokens = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Message | None]] = {}
        self._slots = asyncio.Semaphore(OUTSTANDING_MAX)
        self._retries = metrics.counter("publish_retries", "Publishes repeated because no ack came")
        self._duplicates = metrics.counter(
            "publish_duplicates", "Publishes of which the server had the message already"
        )
        self._outstanding = metrics.gauge("publishes_outstanding", "Publishes waiting for their ack")

    async def start(self) -> None:
        """Subscribe to the inbox; call once, before the first publish."""
        await self._connection.subscribe(f"{self._inbox}.*", self._on_ack)
        self._connection.on_connected(self._retry_all)

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str], deadline_s: float
    ) -> PubAck:
        """Store one message, once, and return the server's ack.

        Raises `PublishRefusedError` if it is certainly not stored and `PublishUnknownError` if nobody can tell.
        """
        stamped = {**headers, "Nats-Msg-Id": message_id}
        try:
            async with asyncio.timeout(deadline_s), self._slots:
                self._outstanding.add(1)
                try:
                    return await self._publish_until_acked(subject, payload, stamped)
                finally:
                    self._outstanding.add(-1)
        except TimeoutError:
            raise PublishUnknownError(
                f"no ack for {message_id} on {subject} within {deadline_s:g} s: whether it is stored is unknown"
            ) from None

    async def _publish_until_acked(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> PubAck:
        token = str(next(self._tokens))
        try:
            while True:
                await self._connection.wait_connected()
                answer = await self.attempt(subject, payload, headers, token=token)
                if answer is not None:
                    ack = self._pub_ack(answer, subject)
                    if ack is not None:
                        return ack
                    await asyncio.sleep(UNAVAILABLE_PAUSE_S)
                self._retries.add()
        finally:
            self._waiting.pop(token, None)

    async def attempt(self, subject: str, payload: bytes, headers: Mapping[str, str], *, token: str) -> Message | None:
        """Send once and wait for the server's answer; None if none came in time.

        All attempts of one publish share a token, so a late answer to an earlier one counts for the current one.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Message | None] = loop.create_future()
        self._waiting[token] = waiting
        timer = loop.call_later(self._attempt_timeout_s, _give_up, waiting)
        try:
            await self._connection.send(subject, payload, reply=f"{self._inbox}.{token}", headers=headers)
        except NotConnectedError:
            # Not at once again: the buffer may be full while the connection still counts as up.
            await asyncio.sleep(UNAVAILABLE_PAUSE_S)
            return None
        else:
            return await waiting
        finally:
            timer.cancel()

    def _on_ack(self, message: Message) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _retry_all(self) -> None:
        """Answers to what the old connection carried will not come."""
        for waiting in self._waiting.values():
            _give_up(waiting)

    def _pub_ack(self, message: Message, subject: str) -> PubAck | None:
        """The ack in an answer; None if the server cannot store just now."""
        if message.headers.get("Status") == str(_UNAVAILABLE):
            return None  # no responders: no stream listens on the subject, or it is not up yet
        try:
            answer = msgspec.json.decode(message.payload, type=_Answer)
        except msgspec.DecodeError as error:
            raise PublishRefusedError(f"the answer to a publish on {subject} is no PubAck: {error}") from None
        if answer.error is not None:
            if answer.error.code == _UNAVAILABLE:
                return None
            raise PublishRefusedError(
                f"the server refused a message on {subject}: {answer.error.description} ({answer.error.err_code})"
            )
        if answer.duplicate:
            self._duplicates.add()
        return PubAck(stream=answer.stream, sequence=answer.seq, duplicate=answer.duplicate)


def _give_up(waiting: asyncio.Future[Message | None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
