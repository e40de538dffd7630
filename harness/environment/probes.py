"""Probes ask whether the server at an address really answers.

Promises: each returns None when it does, else one clause that says what was seen; never raises for what the network or
the server does; bounded by its time-out. A proxy always accepts, so a probe asks for an answer, not for a connection.

Does not: leave traffic counters untouched. Asked through a proxy, a probe's own bytes (about 100) are counted there.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from types import TracebackType
from typing import Self

from harness.environment.loopback_http import HttpError, exchange
from harness.environment.nats.access import BrokerAccess

PROBE_TIMEOUT_S = 1.0
NATS_LINE_BYTES_MAX = 64 * 1024
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)

Probe = Callable[[], Awaitable[str | None]]


async def probe_http(address: str, path: str, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """None when a GET of this path answers 200."""
    try:
        answer = await exchange(address, "GET", path, timeout_s=timeout_s)
    except TimeoutError:
        return f"GET {path} at {address}: no answer within {timeout_s:g} s"
    except OSError as error:
        return f"GET {path} at {address}: {_words(error)}"
    except HttpError as error:
        return str(error)
    return None if answer.status == HTTPStatus.OK else f"GET {path} at {address}: {answer.status} {answer.text[:200]}"


async def probe_nats(
    address: str, timeout_s: float = PROBE_TIMEOUT_S, *, access: BrokerAccess | None = None
) -> str | None:
    """None when a NATS server with JetStream sends its INFO, lets us in, and answers PING with PONG.

    access: with which credentials, and whether over TLS; its own addresses are not looked at.
    """

    async def talk(peer: _Peer) -> str | None:
        first = await peer.line("the server's INFO")
        why_not = _why_not_nats(first) or _why_not_jetstream(first)
        if why_not is not None:
            return why_not
        tls = None if access is None else access.tls_context()
        if tls is not None:
            await peer.start_tls(tls)
        reply = await peer.line("PONG after PING", asked=_connect(access) + b"PING\r\n")
        return None if reply.strip() == b"PONG" else f"answered {reply[:100]!r} to PING"

    return await _ask("NATS", address, timeout_s, talk)


async def probe_route(address: str, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """None when a NATS server takes routes here. It refuses us, which are no server; its refusal is an answer."""

    async def talk(peer: _Peer) -> str | None:
        why_not = _why_not_nats(await peer.line("the server's INFO"))
        if why_not is not None:
            return why_not
        return None if await peer.line("an answer to PING", asked=b"PING\r\n") else "closed without an answer to PING"

    return await _ask("NATS route", address, timeout_s, talk)


async def probe_postgres(address: str, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """None when a PostgreSQL server says whether it speaks TLS, which it says to everybody."""

    async def talk(peer: _Peer) -> str | None:
        reply = await peer.byte("an answer to SSLRequest", asked=_SSL_REQUEST)
        return None if reply in (b"S", b"N") else f"answered {reply!r} to SSLRequest"

    return await _ask("PostgreSQL", address, timeout_s, talk)


class _Peer:
    """A connection that knows what it waits for."""

    def __init__(self, address: str) -> None:
        self.waiting_for = "a connection"
        self._host, _, port = address.rpartition(":")
        self._port = int(port)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=NATS_LINE_BYTES_MAX)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    async def line(self, what: str, *, asked: bytes = b"") -> bytes:
        await self._send(what, asked)
        return await self._reader.readline()

    async def byte(self, what: str, *, asked: bytes) -> bytes:
        await self._send(what, asked)
        return await self._reader.read(1)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        self.waiting_for = "TLS"
        await self._writer.start_tls(context, server_hostname=self._host)

    async def _send(self, what: str, asked: bytes) -> None:
        self.waiting_for = what
        if asked:
            self._writer.write(asked)
            await self._writer.drain()


async def _ask(what: str, address: str, timeout_s: float, talk: Callable[[_Peer], Awaitable[str | None]]) -> str | None:
    peer = _Peer(address)
    try:
        async with asyncio.timeout(timeout_s), peer:
            seen = await talk(peer)
    except TimeoutError:
        return f"{what} at {address}: waited {timeout_s:g} s for {peer.waiting_for} in vain"
    except (OSError, ValueError) as error:
        return f"{what} at {address}: {_words(error)} while waiting for {peer.waiting_for}"
    return None if seen is None else f"{what} at {address}: {seen}"


def _connect(access: BrokerAccess | None) -> bytes:
    options: dict[str, object] = {"verbose": False, "name": "stormproof-probe"}
    if access is not None and access.user is not None:
        options |= {"user": access.user, "pass": access.password}
    return f"CONNECT {json.dumps(options)}\r\n".encode()


def _why_not_nats(line: bytes) -> str | None:
    if not line:
        return "closed the connection before its INFO"
    return None if line.startswith(b"INFO ") else f"sent {line[:60]!r} in place of its INFO"


def _why_not_jetstream(line: bytes) -> str | None:
    try:
        info = json.loads(line[5:])
    except ValueError:
        return "sent an INFO that is not JSON"
    return None if isinstance(info, dict) and info.get("jetstream") is True else "its JetStream is not enabled"


def _words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return str(error) or type(error).__name__
