"""One connection of the HTTP server: bytes in, requests in turn, responses in the same order.

Promises: at most `PIPELINE_MAX` requests wait; a head or body above its bound is refused as soon as that is known,
and what follows it is swallowed, not kept; no request is begun while the client does not read what was answered; what
is answered at once after one read leaves in one write.

Does not know what requests mean: the server it belongs to answers them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from system.web.messages import Request, Response, problem

HEAD_MAX_BYTES = 32 * 1024
PIPELINE_MAX = 64
TAIL_FACTOR_MAX = 8
"""A body in chunks of one byte each takes six times as many."""
CONNECTIONS_MAX = 4096
REQUEST_WITHIN_S = 15.0
"""From the first byte of a request to its last: the bound on a client that dribbles."""
IDLE_MAX_S = 75.0
"""How long a client may neither ask nor read."""
LINGER_S = 1.0
"""How long a refused upload is swallowed after the answer, so that a reset does not overtake it."""

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}
_CACHED_MAX = 256


class Owner(Protocol):
    """What a connection needs of its server."""

    body_max_bytes: int
    is_draining: bool

    def begin(self, request: Request, connection: HttpConnection) -> Response | None:
        """The response to a request. None if that takes time: the connection will be `answered`, or `abandon`ed."""

    def connection_opened(self, connection: HttpConnection) -> int:
        """Note a connection; returns how many there are now."""

    def connection_closed(self, connection: HttpConnection) -> None:
        """Forget a connection."""

    def turn_began(self) -> None:
        """Something is to be answered."""

    def turn_ended(self) -> None:
        """It was answered, or nobody is left to answer to."""

    def date_line(self) -> bytes:
        """The Date header, with the end of its line."""


_Turn = tuple[Request | Response, bool]
"""What is answered next on a connection: a request, or what refuses something that did not become one; and whether it
is the last."""


class HttpConnection(asyncio.Protocol):
    """One TCP connection: parses, queues, and answers one request at a time."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._turns: deque[_Turn] = deque()
        self._is_waiting = False
        self._is_refused = False
        self._is_over = False
        self._is_reading_paused = False
        self._is_writable = True
        self._head_bytes = 0
        self._tail_bytes = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: bytes | bytearray = b""
        self._is_head_complete = False
        self._is_idle = True
        self._since_s = time.monotonic()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast("asyncio.Transport", transport)
        if self._server.connection_opened(self) > CONNECTIONS_MAX:
            self._refuse(problem(503, "too many connections", retry_after_s=1))
            self._answer_turns()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - nobody is left to be told why
        """The client is gone; what it asked for goes on."""
        self._transport = None
        self._server.connection_closed(self)
        self.resume_writing()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """It reads again, or never will."""
        self._is_writable = True
        self._answer_turns()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._is_refused:
            return
        if not self._is_head_complete:
            self._head_bytes += len(data)
        elif not self._is_idle:
            self._tail_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An offered upgrade may be ignored; the bytes behind it are not ours to understand.
            self._is_refused = True
            if self._turns:
                self._turns[-1] = (self._turns[-1][0], True)
        except httptools.HttpParserError as error:
            self._refuse(problem(400, f"this is not HTTP/1.1: {error}"))
        else:
            self._bound()
        if self._turns:
            self._answer_turns()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = {}
        self._body = b""
        self._tail_bytes = 0
        self._is_head_complete = False
        self._is_idle = False
        self._since_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers; what comes behind the body is none (RFC 9110, 6.5.1)."""
        if self._is_head_complete:
            return
        key, headers = _lowered(name), self._headers
        if key in headers:
            headers[key] += ", " + value.decode("latin-1")
        else:
            headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Its head is complete: refuse it now rather than read its body for nothing."""
        self._is_head_complete = True
        headers = self._headers
        length = headers.get("content-length", "0")
        if "host" not in headers and self._parser.get_http_version() == "1.1":
            self._refuse(problem(400, "an HTTP/1.1 request needs a Host"))
        elif length.isdigit() and int(length) > self._server.body_max_bytes:
            self._refuse_large_body()
        elif "expect" in headers and headers["expect"].lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if self._is_refused:
            return
        if not self._body:
            self._body = body  # most come in one piece
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body
        if len(self._body) > self._server.body_max_bytes:
            self._refuse_large_body()

    def on_message_complete(self) -> None:
        """It is complete."""
        if self._is_refused:
            return
        self._is_idle = True
        self._head_bytes = 0
        url = self._url
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=(url.partition(b"?")[0] if b"?" in url else url).decode("latin-1"),
            headers=self._headers,
            body=bytes(self._body),
        )
        self._add_turn(request, is_last=not self._parser.should_keep_alive())

    # What the server calls.

    def expire(self, now_s: float) -> None:
        """Close a connection that is idle, reads nothing, or has not finished sending a request, for too long."""
        age_s = now_s - self._since_s
        if not self._is_writable or (self._transport is not None and self._transport.is_closing()):
            if age_s > IDLE_MAX_S and self._transport is not None:
                self._transport.abort()  # closing would wait for the client to read
        elif self._turns:
            return
        elif self._is_idle and age_s > IDLE_MAX_S:
            self.close()
        elif not self._is_idle and age_s > REQUEST_WITHIN_S and not self._is_refused:
            self._refuse(problem(408, f"a request must be complete within {REQUEST_WITHIN_S:g} s"))
            self._answer_turns()

    def close(self) -> None:
        """Close once everything written has left."""
        if self._transport is not None:
            self._transport.close()

    def answered(self, response: Response) -> None:
        """The response that the server promised for the request whose turn it is."""
        self._is_waiting = False
        self._write(self._end_turn(response))
        if self._turns:
            self._answer_turns()

    def abandon(self) -> None:
        """The response that the server promised will not come: close, so that the client knows that it cannot know."""
        self._is_waiting = False
        self._is_refused = True
        self._drop_turns()
        self.close()

    # The rest is private.

    def _bound(self) -> None:
        """Refuse what is too large already, though it is not complete; read no more while much waits."""
        if self._is_idle:
            is_head_too_large = is_tail_too_large = False  # as nearly always: a request comes in one piece
        else:
            is_head_too_large = not self._is_head_complete and self._head_bytes > HEAD_MAX_BYTES
            is_tail_too_large = self._tail_bytes > TAIL_FACTOR_MAX * self._server.body_max_bytes + HEAD_MAX_BYTES
        if is_head_too_large:
            self._refuse(problem(431, f"the head of a request may hold {HEAD_MAX_BYTES} bytes"))
        elif is_tail_too_large:
            self._refuse(problem(413, "what stands around the body, chunk sizes or trailers, is far too large"))
        elif len(self._turns) >= PIPELINE_MAX and self._transport is not None:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def _refuse_large_body(self) -> None:
        self._refuse(problem(413, f"the body may hold {self._server.body_max_bytes} bytes"))

    def _refuse(self, response: Response) -> None:
        """Answer what cannot be parsed or read, in its turn, and look at nothing behind it."""
        if not self._is_refused:
            self._is_refused = True
            self._add_turn(response, is_last=True)

    def _add_turn(self, asked: Request | Response, *, is_last: bool) -> None:
        self._turns.append((asked, is_last))
        self._server.turn_began()

    def _drop_turns(self) -> None:
        while self._turns:
            self._turns.popleft()
            self._server.turn_ended()

    def _answer_turns(self) -> None:
        """Answer what waits, until one answer takes time or the client should read first."""
        written: list[bytes] = []
        while self._turns and self._is_writable and not self._is_waiting:
            asked, _ = self._turns[0]
            response = asked if isinstance(asked, Response) else self._server.begin(asked, self)
            if response is None:
                self._is_waiting = True
            else:
                written += self._end_turn(response)
        if written:
            self._write(written)

    def _end_turn(self, response: Response) -> list[bytes]:
        """The bytes of a response; nothing is answered behind the last one."""
        asked, is_last = self._turns.popleft()
        server = self._server
        server.turn_ended()
        if is_last or (server.is_draining and not self._turns):
            self._is_over = True
            self._drop_turns()
        body = response.body
        parts = [_head(response.status, response.content_type, len(body)), server.date_line()]
        for name, value in response.headers:
            parts.append(f"{name}: {value}\r\n".encode("latin-1"))
        parts.append(b"connection: close\r\n\r\n" if self._is_over else b"\r\n")
        if isinstance(asked, Response) or asked.method != "HEAD":
            parts.append(body)
        return parts

    def _write(self, parts: list[bytes]) -> None:
        self._since_s = time.monotonic()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(b"".join(parts))
        if self._is_over:
            self._finish(transport)
        elif self._is_reading_paused and len(self._turns) < PIPELINE_MAX // 2:
            self._is_reading_paused = False
            transport.resume_reading()

    def _finish(self, transport: asyncio.Transport) -> None:
        """Close; but go on swallowing an upload for a while, or a reset would overtake the answer that refuses it."""
        if self._is_refused and transport.can_write_eof():
            transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self.close)
        else:
            self._is_refused = True  # nothing that still arrives is looked at
            self.close()


@lru_cache(maxsize=_CACHED_MAX)
def _lowered(name: bytes) -> str:
    return name.decode("latin-1").lower()


@lru_cache(maxsize=_CACHED_MAX)
def _head(status: int, content_type: str, length: int) -> bytes:
    """What the head of such a response begins with: a service has few kinds, and most are of the same length."""
    lines = (_STATUS_LINES[status], f"content-type: {content_type}", f"content-length: {length}")
    return "\r\n".join((*lines, "")).encode("latin-1")
