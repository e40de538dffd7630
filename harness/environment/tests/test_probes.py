"""Probes and the small HTTP client: what the other side does becomes words, never an exception or a hang."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from harness.environment.loopback_http import HttpError, exchange
from harness.environment.nats.access import BrokerAccess
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.probes import probe_http, probe_nats, probe_postgres, probe_route


@asynccontextmanager
async def serving(answer: bytes, *, speaks_first: bool = False, hangs: bool = False) -> AsyncIterator[str]:
    """A server that says the same to everybody; one that hangs keeps the connection open afterwards."""
    is_over = asyncio.Event()
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            if not (speaks_first or hangs):
                await reader.read(1)
            writer.write(answer)
            await writer.drain()
            if hangs:
                await is_over.wait()
        finally:
            writer.transport.close()

    server = await asyncio.start_server(handle, LOOPBACK, 0)
    try:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        is_over.set()
        server.close()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
async def test_every_way_to_frame_an_answer_is_read(answer: bytes, body: bytes) -> None:
    """Go, Python and proxies frame bodies differently."""
    async with serving(answer) as address:
        assert (await exchange(address, "GET", "/", timeout_s=5)).body == body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_one_clear_error(answer: bytes) -> None:
    """A wrong server on a port must not become a traceback."""
    async with serving(answer) as address:
        with pytest.raises(HttpError, match=r"not an HTTP answer|the connection was closed"):
            await exchange(address, "GET", "/", timeout_s=5)


async def test_an_http_probe_tells_ready_from_not_ready() -> None:
    """Only 200 is ready."""
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as address:
        assert await probe_http(address, "/ready") is None
    async with serving(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\n\r\nno nats") as address:
        assert await probe_http(address, "/ready") == f"GET /ready at {address}: 503 no nats"


async def test_a_server_that_accepts_and_says_nothing_does_not_pass_a_probe() -> None:
    """A proxy in front of nothing accepts every connection: that is no sign of life."""
    async with serving(b"", hangs=True) as address:
        http = await probe_http(address, "/ready", 0.05)
        nats = await probe_nats(address, 0.05)

    assert http == f"GET /ready at {address}: no answer within 0.05 s"
    assert nats == f"NATS at {address}: waited 0.05 s for the server's INFO in vain"


@pytest.mark.parametrize(
    ("greeting", "seen"),
    [
        (b"", "closed the connection before its INFO"),
        (b"HTTP/1.1 400 Bad Request\r\n", "in place of its INFO"),
        (b"INFO {}\r\n", "its JetStream is not enabled"),
        (b"INFO nonsense\r\n", "sent an INFO that is not JSON"),
        (b'INFO {"jetstream":true}\r\n-ERR bad\r\n', "to PING"),
    ],
)
async def test_a_nats_probe_says_what_it_saw_in_place_of_nats(greeting: bytes, seen: str) -> None:
    """INFO, JetStream and PONG: all three, or the clause says which is missing."""
    async with serving(greeting, speaks_first=True) as address:
        said = await probe_nats(address, 1)

    assert said is not None
    assert seen in said or "connection reset" in said


@pytest.mark.parametrize(
    ("answers", "seen"),
    [
        (b"INFO {}\r\n-ERR 'Authorization Violation'\r\n", None),
        (b"INFO {}\r\n", "closed without an answer to PING"),
        (b"", "closed the connection before its INFO"),
        (b"SSH-2.0-OpenSSH\r\n", "in place of its INFO"),
    ],
)
async def test_a_refusal_from_a_route_is_an_answer(answers: bytes, seen: str | None) -> None:
    """It came back after something that we sent, so both directions work."""
    async with serving(answers, speaks_first=True) as address:
        said = await probe_route(address, 1)

    assert said == seen or (seen is not None and said is not None and (seen in said or "connection reset" in said))


@pytest.mark.parametrize(
    ("answer", "seen"), [(b"N", None), (b"S", None), (b"", "answered b'' to SSLRequest"), (b"H", "answered b'H'")]
)
async def test_postgresql_says_to_everybody_whether_it_speaks_tls(answer: bytes, seen: str | None) -> None:
    """No login is needed for that, and nothing else answers so."""
    async with serving(answer) as address:
        said = await probe_postgres(address, 1)

    assert said == seen or (seen is not None and said is not None and (seen in said or "connection reset" in said))


async def test_a_silent_server_passes_no_probe_of_any_kind() -> None:
    """A proxy in front of nothing accepts everybody."""
    async with serving(b"", hangs=True) as address:
        route = await probe_route(address, 0.05)
        postgres = await probe_postgres(address, 0.05)

    assert route == f"NATS route at {address}: waited 0.05 s for the server's INFO in vain"
    assert postgres == f"PostgreSQL at {address}: waited 0.05 s for an answer to SSLRequest in vain"


async def test_a_probe_tells_the_server_who_it_is_and_nobody_else() -> None:
    """In the CONNECT line, whatever the password holds; the sentence about a refusal does not quote it."""
    heard: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"jetstream":true}\r\n')
        heard.append(await reader.readline())
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, LOOPBACK, 0)
    address = f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    access = BrokerAccess(urls=(f"nats://{address}",), user="shop", password='open "sesame"')  # noqa: S106 - of a test
    async with server:
        said = await probe_nats(address, access=access)

    connect = json.loads(heard[0].removeprefix(b"CONNECT "))
    assert (connect["user"], connect["pass"]) == ("shop", 'open "sesame"')
    assert said is not None
    assert "Authorization Violation" in said
    assert "sesame" not in said


async def test_nobody_listening_is_connection_refused(lease: PortLease) -> None:
    """The commonest case has the shortest words."""
    address = f"{LOOPBACK}:{lease.take(1)[0]}"

    assert await probe_http(address, "/ready") == f"GET /ready at {address}: connection refused"
    assert await probe_nats(address) == f"NATS at {address}: connection refused while waiting for a connection"
