"""An HTTP/1.1 server for small JSON services: asyncio.Protocol over httptools.

Promises: responses leave in the order of their requests, however a client pipelines; the requests of one connection are
handled one after the other, so an order and a question about it cannot overtake each other. Bodies, heads, pipelines and
connections are bounded, and what exceeds a bound is refused without being read into memory. Once `drain` began, no new
request reaches the handler: it is answered 503, which a client can tell apart from a lost answer.

Does not: TLS, HTTP/2, streaming bodies, compression. A client that goes away does not cancel what it asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Self, cast

import httptools

from system.errors import StartError
from system.problems import Response, problem
from system.settings import Address

log = logging.getLogger(__name__)

BODY_MAX_BYTES = 64 * 1024
HEAD_MAX_BYTES = 32 * 1024
PIPELINE_MAX = 64
CONNECTIONS_MAX = 4096
BACKLOG_MAX = 1024
REQUEST_WITHIN_S = 15.0
"""From the first byte of a request to its last: the bound on a client that dribbles."""
IDLE_MAX_S = 75.0
SWEEP_EVERY_S = 5.0
LINGER_S = 1.0
"""How long a refused upload is swallowed after the answer, so that a reset does not overtake it."""
DRAIN_WITHIN_S = 8.0
DRAIN_LINGER_S = 0.1
"""How long idle connections stay open during `drain`, so that a request already on its way gets its 503."""

REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. path: without the query. headers: names in lower case, repeated ones joined by a comma."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Handler = Callable[[Request], Awaitable[Response]]


class ListenError(StartError):
    """The address cannot be listened on; the message is one sentence for a person."""


class Server:
    """Listens on one address and hands every request to one handler, from `async with` until its end."""

    def __init__(self, address: Address, handler: Handler, *, body_max_bytes: int = BODY_MAX_BYTES) -> None:
        self._address = address
        self._handler = handler
        self._body_max_bytes = body_max_bytes
        self._connections: set[_Connection] = set()
        self._tasks = asyncio.TaskGroup()
        self._sweeper: asyncio.Task[None] | None = None
        self._listener: asyncio.Server | None = None
        self._requests_in_flight = 0
        self._nothing_in_flight = asyncio.Event()
        self._nothing_in_flight.set()
        self._is_draining = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                lambda: _Connection(self), self._address.host, self._address.port, backlog=BACKLOG_MAX
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ListenError(f"cannot listen on {self._address}: {reason}; choose another address") from None
        await self._tasks.__aenter__()
        self._sweeper = self._tasks.create_task(self._sweep())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop_listening()
        for connection in list(self._connections):
            connection.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def drain(self) -> None:
        """Stop listening, answer 503 to whatever still arrives, and wait, bounded, for the requests in flight."""
        self._is_draining = True
        self._stop_listening()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_WITHIN_S):
                await self._nothing_in_flight.wait()
        if self._requests_in_flight:
            log.error("%d requests were still in flight after %g s", self._requests_in_flight, DRAIN_WITHIN_S)
        if self._connections:
            await asyncio.sleep(DRAIN_LINGER_S)
        for connection in list(self._connections):
            connection.close()

    async def answer(self, request: Request) -> Response:
        """The handler's response; whatever escapes the handler becomes a 500 here, at the edge."""
        if self._is_draining:
            return problem(503, "this service is stopping; the request was not looked at", retry_after_s=1)
        try:
            return await self._handler(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return problem(500, "the service failed; whether the request had an effect is unknown")

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _request_began(self) -> None:
        self._requests_in_flight += 1
        self._nothing_in_flight.clear()

    def _request_ended(self) -> None:
        self._requests_in_flight -= 1
        if not self._requests_in_flight:
            self._nothing_in_flight.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = time.monotonic()
            for connection in list(self._connections):
                connection.expire(now_s)


class _Connection(asyncio.Protocol):
    """One TCP connection: parses, queues, and lets one task at a time answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._requests: deque[tuple[Request, bool]] = deque()
        self._is_answering = False
        self._is_refused = False
        self._is_reading_paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._since_s = time.monotonic()
        self._head_bytes = 0
        self._begin_message()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connections = self._server._connections  # noqa: SLF001 - one unit with its server
        connections.add(self)
        if len(connections) > CONNECTIONS_MAX:
            self._refuse(problem(503, "too many connections", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - nobody is left to be told why
        self._transport = None
        self._writable.set()
        self._server._connections.discard(self)  # noqa: SLF001

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if not self._is_head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An offered upgrade may be ignored; the bytes behind it are not ours to understand.
            self._close_after_last()
        except httptools.HttpParserError as error:
            self._refuse(problem(400, f"this is not HTTP/1.1: {error}"))
            return
        if not self._is_head_complete and self._head_bytes > HEAD_MAX_BYTES:
            self._refuse(problem(431, f"the head of a request may hold {HEAD_MAX_BYTES} bytes"))
        elif len(self._requests) >= PIPELINE_MAX and self._transport is not None:
            self._is_reading_paused = True
            self._transport.pause_reading()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._begin_message()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._is_head_complete = True
        self._head_bytes = 0
        length = self._headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._server._body_max_bytes:  # noqa: SLF001
            self._refuse_large_body()
        elif self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        self._body += body
        if len(self._body) > self._server._body_max_bytes:  # noqa: SLF001
            self._refuse_large_body()

    def on_message_complete(self) -> None:
        if self._is_refused:
            return
        method = self._parser.get_method().decode("latin-1")
        path = self._url.partition(b"?")[0].decode("latin-1")
        request = Request(method=method, path=path, headers=self._headers, body=bytes(self._body))
        self._requests.append((request, self._parser.should_keep_alive()))
        self._is_head_complete = False
        self._is_idle = True
        self._server._request_began()  # noqa: SLF001
        if not self._is_answering:
            self._is_answering = True
            self._server._tasks.create_task(self._answer_all())  # noqa: SLF001

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

    def _close_after_last(self) -> None:
        if self._requests:
            request, _ = self._requests.pop()
            self._requests.append((request, False))

    async def _answer_all(self) -> None:
        while self._requests:
            request, keep_alive = self._requests[0]
            response = await self._server.answer(request)
            await self._writable.wait()
            self._requests.popleft()
            self._server._request_ended()  # noqa: SLF001
            self._since_s = time.monotonic()
            is_last = not keep_alive or self._server._is_draining  # noqa: SLF001
            self._write(response, close=is_last, with_body=request.method != "HEAD")
            if is_last:
                self._forget_rest()
                self.close()
            elif self._is_reading_paused and len(self._requests) < PIPELINE_MAX // 2 and self._transport is not None:
                self._is_reading_paused = False
                self._transport.resume_reading()
        self._is_answering = False

    def _forget_rest(self) -> None:
        while self._requests:
            self._requests.popleft()
            self._server._request_ended()  # noqa: SLF001

    def _refuse_large_body(self) -> None:
        self._refuse(problem(413, f"the body may hold {self._server._body_max_bytes} bytes"))  # noqa: SLF001

    def _refuse(self, response: Response) -> None:
        """Answer what cannot be parsed or read, after what is still being answered, and close."""
        self._is_refused = True
        self._server._tasks.create_task(self._answer_refusal(response))  # noqa: SLF001

    async def _answer_refusal(self, response: Response) -> None:
        while self._is_answering and self._transport is not None:
            await asyncio.sleep(0.005)
        self._write(response, close=True, with_body=True)
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
            await asyncio.sleep(LINGER_S)
        self.close()

    def _write(self, response: Response, *, close: bool, with_body: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        lines = [
            f"HTTP/1.1 {response.status} {REASONS.get(response.status, '')}",
            f"date: {formatdate(usegmt=True)}",
            f"content-type: {response.content_type}",
            f"content-length: {len(response.body)}",
        ]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if close:
            lines.append("connection: close")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self._transport.write(head + response.body if with_body else head)
