"""A small HTTP/1.1 client: a pool of keep-alive connections to one server.

Promises: a request is written once and never repeated here; at most `connections_max` are open; a connection whose
answer did not come is closed and never reused, so that a late answer cannot be taken for another's. An error says
whether the request may have been carried out: `NotSentError` certainly not, `AnswerLostError` nobody can tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import httptools

from system.settings import Address

CONNECTIONS_MAX = 64
IDLE_MAX_S = 30.0
"""Below the server's own idle bound, so that we close first and no request meets a closing connection."""
ANSWER_MAX_BYTES = 1024 * 1024


class HttpClientError(Exception):
    """No answer was had."""


class NotSentError(HttpClientError):
    """The request did not leave: it certainly had no effect."""


class AnswerLostError(HttpClientError):
    """The request left and no whole answer came: nobody can tell whether it had an effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes


class HttpClient:
    """Requests to one server, one in flight per connection."""

    def __init__(self, address: Address, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._address = address
        self._slots = asyncio.Semaphore(connections_max)
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, *, headers: Mapping[str, str], within_s: float) -> Answer:
        """The server's answer to one POST, whatever its status."""
        lines = [f"POST {path} HTTP/1.1", f"host: {self._address}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(within_s), self._slots:
                connection = self._take_idle() or await self._connect()
                answer = await connection.exchange(request)
        except TimeoutError:
            error = AnswerLostError if connection is not None else NotSentError
            raise error(f"{self._address} gave no answer within {within_s:g} s") from None
        finally:
            if connection is not None:
                self._put_back(connection)
        return answer

    def close(self) -> None:
        """Close the idle connections; those in use close when their answer is there."""
        while self._idle:
            self._idle.pop().abort()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and time.monotonic() - connection.idle_since_s < IDLE_MAX_S:
                return connection
            connection.abort()
        return None

    def _put_back(self, connection: _Connection) -> None:
        if connection.is_reusable:
            connection.idle_since_s = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._address.host, self._address.port)
        except OSError as error:
            raise NotSentError(f"cannot connect to {self._address}: {error.strerror or error}") from None
        return connection


class _Connection(asyncio.Protocol):
    """One connection; it is reusable only while every request it carried was answered in full."""

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Answer] | None = None
        self._body = bytearray()
        self._is_clean = True

    @property
    def is_reusable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and self._is_clean

    async def exchange(self, request: bytes) -> Answer:
        """Write one request and wait for its answer."""
        if self._transport is None:
            raise NotSentError("the server closed the connection before the request left")
        self._waiting = asyncio.get_running_loop().create_future()
        self._is_clean = False
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(AnswerLostError(f"the connection broke before the answer was complete ({exc or 'closed'})"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(AnswerLostError(f"the answer is not HTTP/1.1: {error}"))
            self.abort()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > ANSWER_MAX_BYTES:
            self._fail(AnswerLostError(f"the answer holds more than {ANSWER_MAX_BYTES} bytes"))
            self.abort()

    def on_message_complete(self) -> None:
        if self._waiting is None or self._waiting.done():
            self.abort()  # an answer that nobody asked for
            return
        self._is_clean = bool(self._parser.should_keep_alive())
        self._waiting.set_result(Answer(status=self._parser.get_status_code(), body=bytes(self._body)))
        self._body = bytearray()

    def _fail(self, error: HttpClientError) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
