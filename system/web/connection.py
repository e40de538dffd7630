"""One connection of the HTTP server: bytes in, requests in turn, responses in the same order.

Promises: at most `PIPELINE_MAX` requests wait; a head or body above its bound is refused as soon as that is known,
and what follows it is swallowed, not kept. Does not know what requests mean: the server it belongs to answers them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from system.web.messages import Request, Response, problem

HEAD_MAX_BYTES = 32 * 1024
PIPELINE_MAX = 64
CONNECTIONS_MAX = 4096
REQUEST_WITHIN_S = 15.0
"""From the first byte of a request to its last: the bound on a client that dribbles."""
IDLE_MAX_S = 75.0
LINGER_S = 1.0
"""How long a refused upload is swallowed after the answer, so that a reset does not overtake it."""

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}


class Owner(Protocol):
    """What a connection needs of its server."""

    body_max_bytes: int
    is_draining: bool

    async def answer(self, request: Request) -> Response:
        """The response to a request; never raises."""

    def connection_opened(self, connection: HttpConnection) -> int:
        """Note a connection; returns how many there are now."""

    def connection_closed(self, connection: HttpConnection) -> None:
        """Forget a connection."""

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a connection's work in a task that the server waits for."""

    def turn_began(self) -> None:
        """Something is to be answered."""

    def turn_ended(self) -> None:
        """It was answered, or nobody is left to answer to."""

    def date_line(self) -> str:
        """The Date header."""


@dataclass(slots=True, kw_only=True)
class _Turn:
    """What is answered next on a connection: a request, or something that was refused before it became one."""

    asked: Request | Response
    is_last: bool


class HttpConnection(asyncio.Protocol):
    """One TCP connection: parses, queues, and lets one task at a time answer."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._turns: deque[_Turn] = deque()
        self._is_answering = False
        self._is_refused = False
        self._is_reading_paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._head_bytes = 0
        self._begin_message()
        self._is_idle = True

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast("asyncio.Transport", transport)
        if self._server.connection_opened(self) > CONNECTIONS_MAX:
            self._refuse(problem(503, "too many connections", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - nobody is left to be told why
        """The client is gone; what it asked for goes on."""
        self._transport = None
        self._writable.set()
        self._server.connection_closed(self)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It reads again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._is_refused:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An offered upgrade may be ignored; the bytes behind it are not ours to understand.
            self._is_refused = True
            if self._turns:
                self._turns[-1].is_last = True
        except httptools.HttpParserError as error:
            self._refuse(problem(400, f"this is not HTTP/1.1: {error}"))
        else:
            if not self._is_idle and not self._is_head_complete and self._head_bytes > HEAD_MAX_BYTES:
                self._refuse(problem(431, f"the head of a request may hold {HEAD_MAX_BYTES} bytes"))
            elif len(self._turns) >= PIPELINE_MAX and self._transport is not None:
                self._is_reading_paused = True
                self._transport.pause_reading()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin_message()

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers."""
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """Its head is complete: refuse it now rather than read its body for nothing."""
        self._is_head_complete = True
        length = self._headers.get("content-length", "0")
        if self._parser.get_http_version() == "1.1" and "host" not in self._headers:
            self._refuse(problem(400, "an HTTP/1.1 request needs a Host"))
        elif length.isdigit() and int(length) > self._server.body_max_bytes:
            self._refuse_large_body()
        elif self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if self._is_refused:
            return
        self._body += body
        if len(self._body) > self._server.body_max_bytes:
            self._refuse_large_body()

    def on_message_complete(self) -> None:
        """It is complete."""
        if self._is_refused:
            return
        self._is_idle = True
        self._head_bytes = 0
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=self._url.partition(b"?")[0].decode("latin-1"),
            headers=self._headers,
            body=bytes(self._body),
        )
        self._add_turn(_Turn(asked=request, is_last=not self._parser.should_keep_alive()))

    # What the server calls.

    def expire(self, now_s: float) -> None:
        """Close a connection that is idle, or has not finished sending a request, for too long."""
        age_s = now_s - self._since_s
        if self._is_answering:
            return
        if self._is_idle and age_s > IDLE_MAX_S:
            self.close()
        elif not self._is_idle and age_s > REQUEST_WITHIN_S and not self._is_refused:
            self._refuse(problem(408, f"a request must be complete within {REQUEST_WITHIN_S:g} s"))

    def close(self) -> None:
        """Close once everything written has left."""
        if self._transport is not None:
            self._transport.close()

    # The rest is private.

    def _begin_message(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._is_head_complete = False
        self._is_idle = False
        self._since_s = time.monotonic()

    def _refuse_large_body(self) -> None:
        self._refuse(problem(413, f"the body may hold {self._server.body_max_bytes} bytes"))

    def _refuse(self, response: Response) -> None:
        """Answer what cannot be parsed or read, in its turn, and look at nothing behind it."""
        self._is_refused = True
        self._add_turn(_Turn(asked=response, is_last=True))

    def _add_turn(self, turn: _Turn) -> None:
        self._turns.append(turn)
        self._server.turn_began()
        if not self._is_answering:
            self._is_answering = True
            self._server.spawn(self._answer_all())

    async def _answer_all(self) -> None:
        while self._turns:
            turn = self._turns[0]
            asked = turn.asked
            response = await self._server.answer(asked) if isinstance(asked, Request) else asked
            await self._writable.wait()
            is_last = turn.is_last or (self._server.is_draining and len(self._turns) == 1)
            has_body = isinstance(asked, Response) or asked.method != "HEAD"
            self._write(response, is_last=is_last, with_body=has_body)
            self._since_s = time.monotonic()
            self._end_turn()
            if is_last:
                while self._turns:
                    self._end_turn()
                self._finish()
            elif self._is_reading_paused and len(self._turns) < PIPELINE_MAX // 2 and self._transport is not None:
                self._is_reading_paused = False
                self._transport.resume_reading()
        self._is_answering = False

    def _end_turn(self) -> None:
        self._turns.popleft()
        self._server.turn_ended()

    def _finish(self) -> None:
        """Close; but go on swallowing an upload for a while, or a reset would overtake the answer that refuses it."""
        if self._is_refused and self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self.close)
        else:
            self._is_refused = True  # nothing that still arrives is looked at
            self.close()

    def _write(self, response: Response, *, is_last: bool, with_body: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        lines = [
            _STATUS_LINES[response.status],
            self._server.date_line(),
            f"content-type: {response.content_type}",
            f"content-length: {len(response.body)}",
        ]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if is_last:
            lines.append("connection: close")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self._transport.write(head + response.body if with_body else head)
