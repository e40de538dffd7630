"""The HTTP server at its bounds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextvars import ContextVar

import pytest

from system.settings import Address
from system.tests.parts import ask, ask_raw, connected, read_reply, wait_until
from system.tests.serving import Echo, serving
from system.web import Handler, ListenError, Request, Response, Server
from system.web.connection import HEAD_MAX_BYTES, IDLE_MAX_S, PIPELINE_MAX, REQUEST_WITHIN_S, HttpConnection

GET = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


class Now:
    """Answers at once, with no coroutine, and notes the tasks there are meanwhile."""

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def __call__(self, request: Request) -> Response:
        """Answer."""
        self.tasks.append(len(asyncio.all_tasks()))
        if request.path == "/broken":
            raise RuntimeError("as the test wants it")
        return Response(status=200, body=request.path.encode() + request.body)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep."""
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        """Never."""
        return False

    def close(self) -> None:
        """Do nothing."""


SEEN: ContextVar[str] = ContextVar("seen", default="nothing")


def the_connection(server: Server) -> HttpConnection:
    """The only connection there is."""
    (connection,) = server._connections
    return connection


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


async def test_a_handler_that_answers_at_once_costs_no_task() -> None:
    """And a whole pipeline of such answers is one write."""
    now, wire = Now(), Wire()
    async with serving(now) as (server, _):
        tasks = len(asyncio.all_tasks())
        connection = HttpConnection(server)
        connection.connection_made(wire)
        connection.data_received(b"".join(GET % number for number in range(3)))

    assert now.tasks == [tasks] * 3
    (written,) = wire.written
    assert [part.partition(b"\r\n\r\n")[2][:2] for part in written.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"/0",
        b"/1",
        b"/2",
    ]


async def test_answers_at_once_and_later_ones_keep_their_order() -> None:
    """The kind of handler makes no difference to the client."""
    echo, now = Echo(), Now()

    def either(request: Request) -> Response | Awaitable[Response]:
        return now(request) if request.path in ("/1", "/3", "/broken") else echo(request)

    async with serving(either) as (_, port), connected(port) as (reader, writer):
        writer.write(GET % 1 + GET % 2 + b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n" + GET % 3 + GET % 4)
        replies = [await read_reply(reader) for _ in range(5)]

    bodies = [reply.body if reply.status == 200 else reply.status for reply in replies if reply]
    assert bodies == [b"/1", b"/2", 500, b"/3", b"/4"]


async def test_each_request_is_handled_in_a_context_of_its_own() -> None:
    """What one sets, as the current span, the next one of the same connection does not see."""

    async def later(request: Request) -> Response:
        before = SEEN.get()
        SEEN.set(request.path)
        await asyncio.sleep(0)
        return Response(status=200, body=f"{before} then {SEEN.get()}".encode())

    def now(request: Request) -> Response:
        before = SEEN.get()
        SEEN.set(request.path)
        return Response(status=200, body=f"{before} then {SEEN.get()}".encode())

    handlers: tuple[Handler, ...] = (later, now)
    for handler in handlers:
        async with serving(handler) as (_, port), connected(port) as (reader, writer):
            writer.write(GET % 1 + GET % 2)
            replies = [await read_reply(reader) for _ in range(2)]

        assert [reply.body for reply in replies if reply] == [b"nothing then /1", b"nothing then /2"]


async def test_a_handler_may_use_whatever_belongs_to_tasks() -> None:
    """A time-out of asyncio needs a current task."""

    async def impatient(request: Request) -> Response:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            return Response(status=200, body=request.path.encode())
        raise AssertionError

    async with serving(impatient) as (_, port):
        reply = await ask(port, "GET", "/a")

    assert reply.body == b"/a"


async def test_what_escapes_a_handler_is_logged_with_where_it_came_from(caplog: pytest.LogCaptureFixture) -> None:
    """At the edge, whatever kind of handler it was."""
    handlers: tuple[Handler, ...] = (Echo(), Now())
    for handler in handlers:
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            async with serving(handler) as (_, port):
                assert (await ask(port, "GET", "/broken")).status == 500

        (record,) = caplog.records
        assert record.getMessage() == "GET /broken failed"
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], RuntimeError)


async def test_a_handler_that_was_cancelled_answers_nothing_and_the_connection_closes() -> None:
    """Nobody can tell what became of the request, so nothing is said, and a stop does not wait for it."""

    async def cancelled(_: Request) -> Response:
        raise asyncio.CancelledError

    async with serving(cancelled) as (server, port):
        with pytest.raises(ConnectionResetError):
            await ask(port, "GET", "/")
        async with asyncio.timeout(1):
            await server.drain()


async def test_a_client_that_goes_away_does_not_cancel_what_it_asked_for() -> None:
    """Its second request too is handled, and draining waits for both."""
    echo = Echo()
    echo.gate.clear()
    async with serving(echo) as (server, port):
        async with connected(port) as (_, writer):
            writer.write(GET % 1 + GET % 2)
            await wait_until(lambda: len(echo.seen) == 1)
        await wait_until(lambda: not server._connections)
        echo.gate.set()
        await wait_until(lambda: len(echo.seen) == 2)

    assert [request.path for request in echo.seen] == ["/1", "/2"]


async def test_a_server_that_ends_waits_for_what_it_began() -> None:
    """And cancels it only if it ends by an error."""
    echo = Echo()
    echo.gate.clear()
    tasks: list[asyncio.Task[None]] = []

    async def serve_and_fail() -> None:
        async with serving(echo) as (server, port), connected(port) as (_, writer):
            writer.write(GET % 1)
            await wait_until(lambda: len(echo.seen) == 1)
            tasks.extend(server._tasks.values())
            raise RuntimeError("as the test wants it")

    with pytest.raises(RuntimeError, match="as the test wants it"):
        await serve_and_fail()
    assert [task.cancelled() for task in tasks] == [True]

    async with serving(echo) as (server, port), connected(port) as (_, writer):
        writer.write(GET % 2)
        await wait_until(lambda: len(echo.seen) == 2)
        (task,) = server._tasks.values()
        asyncio.get_running_loop().call_soon(echo.gate.set)
    assert task.done()
    assert not task.cancelled()


async def test_nothing_is_begun_for_a_client_that_does_not_read() -> None:
    """It gets all its answers once it reads."""
    seen: list[str] = []

    async def large(request: Request) -> Response:
        seen.append(request.path)
        return Response(status=200, body=b"x" * 1_000_000)

    async with serving(large) as (server, port), connected(port) as (reader, writer):
        writer.write(b"".join(GET % number for number in range(PIPELINE_MAX)))
        await wait_until(lambda: len(server._connections) == 1)
        connection = the_connection(server)
        await wait_until(lambda: not connection._is_writable)
        begun = len(seen)
        await asyncio.sleep(0)
        assert len(seen) == begun < PIPELINE_MAX

        for _ in range(PIPELINE_MAX):
            reply = await read_reply(reader)
            assert reply is not None
            assert len(reply.body) == 1_000_000


async def test_a_client_that_does_not_read_is_cut_off_in_the_end() -> None:
    """Closing would wait for it to read."""

    async def large(_: Request) -> Response:
        return Response(status=200, body=b"x" * 10_000_000)

    async with serving(large) as (server, port), connected(port) as (_, writer):
        writer.write(GET % 1)
        await wait_until(lambda: len(server._connections) == 1)
        connection = the_connection(server)
        await wait_until(lambda: not connection._is_writable)
        connection.expire(time.monotonic() + IDLE_MAX_S / 2)
        assert server._connections
        connection.expire(time.monotonic() + IDLE_MAX_S + 1)
        await wait_until(lambda: not server._connections)


async def test_a_request_that_does_not_end_is_refused_and_an_idle_connection_closed() -> None:
    """One gets a 408, the other gets nothing, because it asked nothing."""
    async with serving(Echo()) as (server, port):
        async with connected(port) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-le")
            await wait_until(lambda: any(not connection._is_idle for connection in server._connections))
            the_connection(server).expire(time.monotonic() + REQUEST_WITHIN_S + 1)
            late = await read_reply(reader)
        await wait_until(lambda: not server._connections)
        async with connected(port) as (reader, _):
            await wait_until(lambda: len(server._connections) == 1)
            the_connection(server).expire(time.monotonic() + IDLE_MAX_S + 1)
            idle = await read_reply(reader)

    assert late is not None
    assert late.status == 408
    assert idle is None


async def test_repeated_headers_are_joined_and_names_are_lower_case() -> None:
    """As messages.Request says."""
    echo = Echo()
    async with serving(echo) as (_, port):
        await ask_raw(port, b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\nConnection: close\r\n\r\n")

    (request,) = echo.seen
    assert request.path == "/a"
    assert request.headers["x-a"] == "1, 2"


async def test_what_comes_behind_a_body_is_no_header() -> None:
    """RFC 9110, 6.5.1: a proxy in front has not looked at it."""
    seen: list[dict[str, str]] = []

    async def handler(request: Request) -> Response:
        seen.append(dict(request.headers))
        return Response(status=200)

    async with serving(handler) as (_, port):
        (reply,) = await ask_raw(
            port,
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            b"2\r\n{}\r\n0\r\nidempotency-key: theirs\r\nhost: b\r\n\r\n",
        )

    assert reply.status == 200
    assert seen == [{"host": "a", "transfer-encoding": "chunked", "connection": "close"}]


@pytest.mark.parametrize("around", [b"0\r\n" + b"x: y\r\n" * 200_000, b"1;" + b"e" * 1_200_000])
async def test_what_stands_around_a_body_is_bounded(around: bytes) -> None:
    """Trailers without end, or an extension of a chunk: refused, and neither kept nor looked at any more."""
    async with serving(Echo()) as (_, port):
        (reply,) = await ask_raw(port, b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + around)

    assert reply.status == 413


async def test_a_connection_that_is_to_close_and_whose_client_reads_nothing_is_cut() -> None:
    """What is left of an answer waits in this process, too little for the transport to say so."""
    cut: list[bool] = []

    class Closing(Wire):
        def is_closing(self) -> bool:
            return True

        def abort(self) -> None:
            cut.append(True)

    connection = HttpConnection(Server(Address(host="127.0.0.1", port=1), Now()))
    connection.connection_made(Closing())
    now_s = time.monotonic()

    connection.expire(now_s + IDLE_MAX_S - 1)
    assert cut == []
    connection.expire(now_s + IDLE_MAX_S + 1)
    assert cut == [True]
