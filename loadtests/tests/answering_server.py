"""A tiny HTTP server that remembers every order it saw and answers each as it is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import httptools

SEEN_WITHIN_S = 30.0


class Manner(Enum):
    """How an order is answered; the number is the status."""

    ACCEPT = 202
    REFUSE = 422
    FAIL = 503
    HANG = 0
    BREAK_OFF = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it arrived."""

    key: str
    traceparent: str
    body: str
    manner: Manner


@dataclass(slots=True, kw_only=True)
class AnsweringServer:
    """What the server is told, and what it saw. stalls_until_s: on the monotonic clock; nothing is answered before."""

    manner_of: Callable[[int], Manner]
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    stall_at: int | None = None
    stall_s: float = 0.0
    stalls_until_s: float = 0.0
    has_arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def arrived(self, transport: asyncio.Transport, headers: dict[str, str], body: bytes) -> None:
        """Remember a request and answer it in its manner."""
        key = headers["idempotency-key"]
        manner = self.manner_of(int(key.rpartition("-")[2]))
        self.seen.append(Seen(key=key, traceparent=headers["traceparent"], body=body.decode(), manner=manner))
        self.has_arrived.set()
        if len(self.seen) == self.stall_at:
            self.stalls_until_s = time.monotonic() + self.stall_s
        wait_s = max(0.0, self.stalls_until_s - time.monotonic())
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, _answer, transport, manner, key)
        else:
            _answer(transport, manner, key)

    async def wait_seen(self, count: int) -> None:
        """Wait until so many requests have arrived."""
        async with asyncio.timeout(SEEN_WITHIN_S):
            while len(self.seen) < count:
                self.has_arrived.clear()
                await self.has_arrived.wait()


@asynccontextmanager
async def answering(
    manner_of: Callable[[int], Manner] = lambda _number: Manner.ACCEPT,
    *,
    stall_at: int | None = None,
    stall_s: float = 0.0,
) -> AsyncIterator[AnsweringServer]:
    """Serve on a free port for the scope. manner_of: by the order's number. stall_at: the n-th request that arrives."""
    server = AnsweringServer(manner_of=manner_of, stall_at=stall_at, stall_s=stall_s)
    listening = await asyncio.get_running_loop().create_server(lambda: _Protocol(server), "127.0.0.1", 0)
    try:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server
    finally:
        listening.close()


def _answer(transport: asyncio.Transport, manner: Manner, key: str) -> None:
    if manner is Manner.HANG or transport.is_closing():
        return
    if manner is Manner.BREAK_OFF:
        transport.close()
        return
    body = json.dumps({"order": key, "said": manner.name})
    transport.write(f"HTTP/1.1 {manner.value} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


class _Protocol(asyncio.Protocol):
    def __init__(self, server: AnsweringServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self._server.arrived(self._transport, self._headers, self._body)
