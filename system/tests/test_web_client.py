"""The HTTP client: whose answer is whose, who waits, and what an error says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from system.settings import Address
from system.tests.parts import Proxy, free_port, wait_until
from system.tests.serving import Echo, serving
from system.web import AnswerLostError, HttpClient, NotSentError
from system.web.client import IDLE_MAX_S, WAITING_MAX
from system.web.exchange import ANSWER_MAX_BYTES, ClientConnection

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def client_to(port: int, *, connections_max: int = 1) -> HttpClient:
    """A client, unless said otherwise with one connection."""
    return HttpClient(Address(host="127.0.0.1", port=port), connections_max=connections_max)


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
    """A server that does with each connection what the script says; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def saying(*answers: bytes) -> Script:
    """One answer to each request of a connection, whatever is asked; then the connection is closed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            if await read_request(reader):
                writer.write(answer)

    return script


async def read_request(reader: asyncio.StreamReader) -> bool:
    """True once there was a whole request without a body; False when the client closed."""
    try:
        return bool(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError:
        return False


async def test_the_client_uses_its_connection_again() -> None:
    """Ten requests, one connection, each its own answer."""
    async with serving(Echo()) as (server, port):
        client = client_to(port)
        answers = [await client.post("/", b"%d" % n, headers={}, within_s=5) for n in range(10)]
        assert len(server._connections) == 1
        client.close()

    assert [answer.body for answer in answers] == [b"/%d" % n for n in range(10)]


async def test_get_and_put_ask_what_they_say() -> None:
    """With the headers they were given."""
    echo = Echo()
    async with serving(echo) as (_, port):
        client = client_to(port)
        await client.get("/a", within_s=5)
        await client.put("/b", b"new", headers={"x-why": "test"}, within_s=5)
        client.close()

    assert [(request.method, request.path, request.body) for request in echo.seen] == [
        ("GET", "/a", b""),
        ("PUT", "/b", b"new"),
    ]
    assert echo.seen[1].headers["x-why"] == "test"


async def test_nobody_listening_means_certainly_not_sent() -> None:
    """The request did not leave, and the place it took is free again."""
    client = client_to(free_port())
    for _ in range(2):
        with pytest.raises(NotSentError, match="cannot connect"):
            await client.post("/", b"", headers={}, within_s=5)


async def test_no_answer_in_time_means_nobody_can_tell() -> None:
    """And the late answer is not taken for the next one's."""
    echo = Echo()
    async with serving(echo) as (_, port):
        client = client_to(port)
        echo.gate.clear()
        with pytest.raises(AnswerLostError, match=r"gave no answer within 0\.1 s"):
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


async def test_a_free_connection_is_had_in_turn() -> None:
    """Nobody who comes later overtakes who waits, and no more than the bound are open."""
    echo = Echo()
    async with serving(echo) as (server, port), asyncio.TaskGroup() as tasks:
        client = client_to(port, connections_max=2)
        echo.gate.clear()
        asking = []
        for n in range(8):
            asking.append(tasks.create_task(client.post("/", b"%d" % n, headers={}, within_s=5)))
            await asyncio.sleep(0)
        await wait_until(lambda: len(echo.seen) == 2)
        echo.gate.set()
        first = await asking[0]
        late = tasks.create_task(client.post("/", b"8", headers={}, within_s=5))
        await asyncio.gather(*asking, late)
        assert len(server._connections) == 2
        client.close()

    assert first.body == b"/0"
    assert [request.body for request in echo.seen][2:] == [b"%d" % n for n in range(2, 9)]


async def test_waiting_for_a_connection_too_long_means_certainly_not_sent() -> None:
    """The deadline covers the wait, and whoever gave up does not take a turn."""
    echo = Echo()
    async with serving(echo) as (_, port), asyncio.TaskGroup() as tasks:
        client = client_to(port)
        echo.gate.clear()
        first = tasks.create_task(client.post("/", b"first", headers={}, within_s=5))
        await wait_until(lambda: len(echo.seen) == 1)
        with pytest.raises(NotSentError, match=r"no connection .* was free 0\.05 s long"):
            await client.post("/", b"waits", headers={}, within_s=0.05)
        last = tasks.create_task(client.post("/", b"last", headers={}, within_s=5))
        echo.gate.set()
        assert (await first).body == b"/first"
        assert (await last).body == b"/last"
        client.close()

    assert [request.body for request in echo.seen] == [b"first", b"last"]


async def test_a_turn_that_is_not_taken_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who waited was cancelled in the moment in which a connection became free."""
    echo = Echo()
    async with serving(echo) as (_, port):
        client = client_to(port)
        echo.gate.clear()
        first = asyncio.create_task(client.post("/", b"first", headers={}, within_s=5))
        await wait_until(lambda: len(echo.seen) == 1)
        second = asyncio.create_task(client.post("/", b"second", headers={}, within_s=5))
        third = asyncio.create_task(client.post("/", b"third", headers={}, within_s=5))
        await asyncio.sleep(0)
        hand_over = client._hand_over

        def hand_over_and_cancel(connection: ClientConnection | None) -> bool:
            is_taken = hand_over(connection)
            second.cancel()
            return is_taken

        monkeypatch.setattr(client, "_hand_over", hand_over_and_cancel)
        echo.gate.set()
        assert (await first).body == b"/first"
        assert (await third).body == b"/third"
        assert second.cancelled()
        client.close()

    assert [request.body for request in echo.seen] == [b"first", b"third"]


async def test_a_cancelled_request_takes_its_connection_with_it() -> None:
    """Its answer may still come; whoever waits gets a new connection."""
    echo = Echo()
    async with serving(echo) as (_, port):
        client = client_to(port)
        echo.gate.clear()
        first = asyncio.create_task(client.post("/", b"first", headers={}, within_s=5))
        await wait_until(lambda: len(echo.seen) == 1)
        second = asyncio.create_task(client.post("/", b"second", headers={}, within_s=5))
        await asyncio.sleep(0)
        first.cancel()
        await wait_until(lambda: len(echo.seen) == 2)
        echo.gate.set()
        assert (await second).body == b"/second"
        assert first.cancelled()
        client.close()


async def test_more_than_a_bound_do_not_wait() -> None:
    """They are told at once that nothing was sent."""
    echo = Echo()
    echo.gate.clear()
    async with serving(echo) as (_, port), asyncio.TaskGroup() as tasks:
        client = client_to(port)
        asking = [tasks.create_task(client.get("/", within_s=5)) for _ in range(WAITING_MAX + 1)]
        await wait_until(lambda: len(client._waiting) == WAITING_MAX)
        with pytest.raises(NotSentError, match=f"{WAITING_MAX} requests wait"):
            await client.get("/", within_s=5)
        echo.gate.set()
        await asyncio.gather(*asking)
        client.close()


async def test_a_connection_the_server_closed_is_not_used_again() -> None:
    """The next request goes over a new one, also after a long pause."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await read_request(reader):
            writer.write(OK)
            if connections == 1:
                return

    async with scripted(script) as port:
        client = client_to(port)
        await client.get("/", within_s=5)
        await wait_until(lambda: not client._idle[0].is_reusable)
        await client.get("/", within_s=5)
        assert connections == 2
        client._idle[0].idle_since_s -= IDLE_MAX_S
        await client.get("/", within_s=5)
        assert connections == 3
        assert client._slots_taken == 1
        client.close()
        assert client._slots_taken == 0


async def test_an_answer_that_says_close_ends_the_connection() -> None:
    """The server need not close first."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with scripted(saying(closing, OK)) as port:
        client = client_to(port)
        answers = [await client.get("/", within_s=5) for _ in range(2)]
        client.close()

    assert [answer.body for answer in answers] == [b"ok", b"ok"]


async def test_an_interim_answer_is_not_the_answer() -> None:
    """The one that counts follows."""
    async with scripted(saying(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK)) as port:
        answer = await client_to(port).get("/", within_s=5)

    assert (answer.status, answer.body) == (200, b"ok")


async def test_an_answer_in_pieces_is_one_answer() -> None:
    """TCP promises no boundaries, and a body may be chunked."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for byte in b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n1\r\nf\r\n0\r\n\r\n":
            writer.write(bytes((byte,)))
            await writer.drain()

    async with scripted(script) as port:
        answer = await client_to(port).get("/", within_s=5)

    assert answer.body == b"abcdef"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"nonsense\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", "broke before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + b"x" * (ANSWER_MAX_BYTES + 1), "holds more than"),
        (b"", "broke before the answer was complete"),
    ],
)
async def test_an_answer_that_cannot_be_understood_means_nobody_can_tell(answer: bytes, reason: str) -> None:
    """The request was there; what became of it is unknown, and the connection is of no use any more."""
    async with scripted(saying(answer)) as port:
        client = client_to(port)
        with pytest.raises(AnswerLostError, match=reason):
            await client.get("/", within_s=5)

    assert client._slots_taken == 0


@pytest.mark.parametrize("more", [OK.replace(b"ok", b"NO"), OK.removesuffix(b"ok"), b"x"])
async def test_what_nobody_asked_for_is_never_taken_for_an_answer(more: bytes) -> None:
    """More than one answer to one request: the connection is closed, and the next request gets its own."""
    async with scripted(saying(OK + more, OK)) as port:
        client = client_to(port)
        answers = [await client.get("/", within_s=5) for _ in range(3)]
        client.close()

    assert [answer.body for answer in answers] == [b"ok"] * 3


async def test_no_timer_runs_while_nobody_waits() -> None:
    """An idle process sleeps."""
    async with serving(Echo()) as (_, port):
        client = client_to(port)
        await client.get("/", within_s=5)
        await wait_until(lambda: client._sweeping is None)
        client.close()


async def test_connections_in_use_close_once_their_answer_is_there() -> None:
    """After close nothing is kept."""
    echo = Echo()
    echo.gate.clear()
    async with serving(echo) as (server, port), asyncio.TaskGroup() as tasks:
        client = client_to(port)
        asking = tasks.create_task(client.get("/", within_s=5))
        await wait_until(lambda: len(echo.seen) == 1)
        client.close()
        echo.gate.set()
        assert (await asking).status == 200
        await wait_until(lambda: not server._connections)
