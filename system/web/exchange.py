"""One connection of the HTTP client: a request out, its answer in, then the next.

Promises: an answer belongs to the request before it or to none; after anything that is not one whole answer to one
request the connection is closed and never used again.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools
import msgspec

from system.settings import Address

ANSWER_MAX_BYTES = 1024 * 1024

_FINAL_FROM = 200

Deadline = tuple[float, float]
"""When it is, and how long that was from the request, both in seconds."""


class HttpClientError(Exception):
    """No answer was had."""


class NotSentError(HttpClientError):
    """The request did not leave: it certainly had no effect."""


class AnswerLostError(HttpClientError):
    """The request left and no whole answer came: nobody can tell whether it had an effect."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a server answered."""

    status: int
    body: bytes


class ClientConnection(asyncio.Protocol):
    """One connection; it is reusable only while every request it carried was answered in full."""

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.idle_since_s = 0.0
        self.is_reusable = False
        self._address = address
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._deadline: Deadline = (0.0, 0.0)
        self._body: bytes | bytearray = b""

    def exchange(self, request: bytes, deadline: Deadline) -> asyncio.Future[Answer]:
        """Write one request; the future is its answer."""
        if self._transport is None or not self.is_reusable:
            raise NotSentError("the server closed the connection before the request left")
        self._answer = self._loop.create_future()
        self._deadline = deadline
        self.is_reusable = False
        self._transport.write(request)
        return self._answer

    def expire(self, now_s: float) -> bool:
        """End the exchange if its time is over; returns whether one goes on."""
        if self._answer is None or self._answer.done():
            return False
        at_s, within_s = self._deadline
        if at_s > now_s:
            return True
        self._fail(f"{self._address} gave no answer within {within_s:g} s")
        return False

    def abort(self) -> None:
        """Close, whatever is under way, and never be used again."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server took the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_reusable = True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and an answer under way with it."""
        self._transport = None
        self._fail(f"the connection broke before the answer was complete ({exc or 'closed'})")

    def eof_received(self) -> None:
        """The server will say nothing more."""
        self.is_reusable = False  # the transport closes now

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the answer is not HTTP/1.1: {error}")

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._answer is None:
            self.abort()  # an answer that nobody asked for, and the rest of it would be taken for the next one's

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if not self._body:
            self._body = body  # most come in one piece
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body
        if len(self._body) > ANSWER_MAX_BYTES:
            self._fail(f"the answer holds more than {ANSWER_MAX_BYTES} bytes")

    def on_message_complete(self) -> None:
        """It is complete."""
        answer, status = self._answer, self._parser.get_status_code()
        if status < _FINAL_FROM:
            return  # an interim answer: the one that counts follows
        if answer is None or answer.done():
            return  # too late, or one too many: we closed already
        self._answer = None
        self.is_reusable = bool(self._parser.should_keep_alive())
        answer.set_result(Answer(status=status, body=bytes(self._body)))
        self._body = b""

    def _fail(self, reason: str) -> None:
        """Nobody can tell what became of the request, and what still arrives is not looked at."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AnswerLostError(reason))
        self.abort()
