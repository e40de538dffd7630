"""Probes ask whether the server at an address really answers.

Promises: each returns None when it does, else one clause that says what was seen; never raises for what the network or
the server does; bounded by its time-out. A proxy always accepts, so a probe asks for an answer, not for a connection.

Does not: leave traffic counters untouched. Asked through a proxy, a probe's own bytes (about 100) are counted there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from harness.environment.loopback_http import HttpError, exchange

PROBE_TIMEOUT_S = 1.0
NATS_LINE_BYTES_MAX = 64 * 1024

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
    return None if answer.status == 200 else f"GET {path} at {address}: {answer.status} {answer.text[:200]}"  # noqa: PLR2004


async def probe_nats(address: str, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """None when a NATS server with JetStream sends its INFO and answers PING with PONG."""
    host, _, port = address.rpartition(":")
    waiting_for = "a connection"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port), limit=NATS_LINE_BYTES_MAX)
            try:
                waiting_for = "the server's INFO"
                first = await reader.readline()
                why_not = _why_not_jetstream(first)
                if why_not is not None:
                    return f"NATS at {address}: {why_not}"
                waiting_for = "PONG after PING"
                writer.write(b'CONNECT {"verbose":false,"name":"stormproof-probe"}\r\nPING\r\n')
                await writer.drain()
                reply = await reader.readline()
            finally:
                writer.transport.abort()
    except TimeoutError:
        return f"NATS at {address}: waited {timeout_s:g} s for {waiting_for} in vain"
    except (OSError, ValueError) as error:
        return f"NATS at {address}: {_words(error)} while waiting for {waiting_for}"
    return None if reply.strip() == b"PONG" else f"NATS at {address}: answered {reply[:100]!r} to PING"


def _why_not_jetstream(line: bytes) -> str | None:
    if not line:
        return "closed the connection before its INFO"
    if not line.startswith(b"INFO "):
        return f"sent {line[:60]!r} in place of its INFO"
    try:
        info = json.loads(line[5:])
    except ValueError:
        return "sent an INFO that is not JSON"
    return None if info.get("jetstream") is True else "its JetStream is not enabled"


def _words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return str(error) or type(error).__name__
