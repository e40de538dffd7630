"""The HTTP server and client at their bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from system.settings import Address
from system.tests.parts import Proxy, ask, ask_raw, connected, free_port, read_reply, wait_until
from system.web import AnswerLostError, HttpClient, ListenError, NotSentError, Request, Response, Server
from system.web.connection import HEAD_MAX_BYTES, PIPELINE_MAX

GET = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


class Echo:
    """Answers with what it was asked, after `gate` opened."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: Request) -> Response:
        """Answer once the gate is open."""
        self.seen.append(request)
        await self.gate.wait()
        if request.path == "/broken":
            raise RuntimeError("as the test wants it")
        return Response(status=200, body=request.path.encode() + request.body)


@asynccontextmanager
async def serving(handler: Echo, *, body_max_bytes: int = 1000) -> AsyncIterator[tuple[Server, int]]:
    """A server within the block, and its port."""
    port = free_port()
    async with Server(Address(host="127.0.0.1", port=port), handler, body_max_bytes=body_max_bytes) as server:
        yield server, port


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    """More than the pipeline holds, all sent before the first answer, over one connection."""
    async with serving(Echo()) as (_, port), connected(port) as (reader, writer):
        writer.write(b"".join(GET % number for number in range(3 * PIPELINE_MAX)))
        replies = [await read_reply(reader) for _ in range(3 * PIPELINE_MAX)]

    assert [reply.body for reply in replies if reply] == [b"/%d" % number for number in range(3 * PIPELINE_MAX)]


async def test_a_request_may_come_byte_by_byte() -> None:
    """TCP promises no boundaries."""
    async with serving(Echo()) as (_, port), connected(port) as (reader, writer):
        for byte in b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi":
            writer.write(bytes((byte,)))
            await writer.drain()
        reply = await read_reply(reader)

    assert reply is not None
    assert reply.body == b"/ahi"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
            413,
        ),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncookie: " + b"x" * HEAD_MAX_BYTES, 431),
    ],
)
async def test_what_is_no_request_gets_a_problem_and_a_closed_connection(request_bytes: bytes, status: int) -> None:
    """The handler never hears of it."""
    echo = Echo()
    async with serving(echo) as (_, port):
        (reply,) = await ask_raw(port, request_bytes)

    assert reply.status == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert echo.seen == []


async def test_a_large_upload_is_refused_before_it_is_read() -> None:
    """10 MB are announced and sent: the answer is there, and not hidden behind a reset."""
    echo = Echo()
    async with serving(echo) as (_, port):
        reply = await ask(port, "POST", "/", body=b"x" * 10_000_000)

    assert reply.status == 413
    assert echo.seen == []


async def test_a_refusal_waits_for_its_turn() -> None:
    """A good request, then rubbish: the good one is answered first."""
    async with serving(Echo()) as (_, port):
        replies = await ask_raw(port, GET % 1 + b"rubbish\r\n\r\n")

    assert [reply.status for reply in replies] == [200, 400]


async def test_a_handler_that_raises_is_a_500_and_the_connection_lives() -> None:
    """One request's failure is nobody else's."""
    async with serving(Echo()) as (_, port), connected(port) as (reader, writer):
        writer.write(b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n" + GET % 2)
        first, second = await read_reply(reader), await read_reply(reader)

    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (500, 200)


async def test_head_is_answered_without_a_body() -> None:
    """And the next answer on the connection is where it should be."""
    async with serving(Echo()) as (_, port), connected(port) as (reader, writer):
        writer.write(b"HEAD /abc HTTP/1.1\r\nhost: x\r\n\r\n" + GET % 7)
        head = await read_reply(reader, has_body=False)
        get = await read_reply(reader)

    assert head is not None
    assert get is not None
    assert (head.headers["content-length"], get.body) == ("4", b"/7")


async def test_draining_finishes_what_was_begun_and_refuses_what_comes_after() -> None:
    """The request in flight gets its answer; the next one on the same connection a 503, and nobody can connect."""
    echo = Echo()
    async with serving(echo) as (server, port), connected(port) as (reader, writer), asyncio.TaskGroup() as tasks:
        echo.gate.clear()
        writer.write(GET % 1)
        await wait_until(lambda: len(echo.seen) == 1)
        drain = tasks.create_task(server.drain())
        await wait_until(lambda: server.is_draining)
        writer.write(GET % 2)
        await writer.drain()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        echo.gate.set()
        first, second = await read_reply(reader), await read_reply(reader)
        await drain

    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (200, 503)
    assert second.headers["connection"] == "close"
    assert len(echo.seen) == 1


async def test_a_port_that_is_taken_is_a_clear_error() -> None:
    """The address and the reason in one sentence."""
    async with serving(Echo()) as (_, port):
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with Server(Address(host="127.0.0.1", port=port), Echo()):
                pass


def client_to(port: int) -> HttpClient:
    """A client with one connection."""
    return HttpClient(Address(host="127.0.0.1", port=port), connections_max=1)


async def test_the_client_uses_its_connection_again() -> None:
    """Ten posts, one connection, each its own answer."""
    async with serving(Echo()) as (server, port):
        client = client_to(port)
        answers = [await client.post("/", b"%d" % n, headers={}, within_s=5) for n in range(10)]
        assert len(server._connections) == 1
        client.close()

    assert [answer.body for answer in answers] == [b"/%d" % n for n in range(10)]


async def test_nobody_listening_means_certainly_not_sent() -> None:
    """The request did not leave."""
    with pytest.raises(NotSentError):
        await client_to(free_port()).post("/", b"", headers={}, within_s=5)


async def test_no_answer_in_time_means_nobody_can_tell() -> None:
    """And the late answer is not taken for the next one's."""
    echo = Echo()
    async with serving(echo) as (_, port):
        client = client_to(port)
        echo.gate.clear()
        with pytest.raises(AnswerLostError):
            await client.post("/", b"late", headers={}, within_s=0.1)
        echo.gate.set()
        answer = await client.post("/", b"next", headers={}, within_s=5)
        client.close()

    assert answer.body == b"/next"


async def test_a_connection_cut_before_the_answer_means_nobody_can_tell() -> None:
    """The server had the request."""
    echo = Echo()
    echo.gate.clear()
    async with serving(echo) as (_, port), Proxy(port) as proxy:

        async def cut_once_asked() -> None:
            await wait_until(lambda: len(echo.seen) == 1)
            proxy.heal()  # closes every connection

        asking = client_to(proxy.port).post("/", b"", headers={}, within_s=5)
        outcome, _ = await asyncio.gather(asking, cut_once_asked(), return_exceptions=True)
        echo.gate.set()

    assert isinstance(outcome, AnswerLostError)
