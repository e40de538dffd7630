"""A small HTTP/1.1 client: a pool of keep-alive connections to one server.

Promises: a request is written once and never repeated here; at most `connections_max` are open, and whoever waits for
one gets it in turn; a connection whose answer did not come is closed and never reused, so that a late answer cannot be
taken for another's. An error says whether the request may have been carried out: `NotSentError` certainly not,
`AnswerLostError` nobody can tell. A deadline covers everything, from waiting for a connection to the last byte of the
answer, and is at most `SWEEP_EVERY_S` late.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass

from system.settings import Address
from system.web.exchange import Answer, ClientConnection, Deadline, NotSentError

CONNECTIONS_MAX = 64
WAITING_MAX = 4096
"""How many may wait for a connection."""
IDLE_MAX_S = 30.0
"""Below the server's own idle bound, so that we close first and no request meets a closing connection."""
SWEEP_EVERY_S = 0.02
"""One timer looks at all deadlines: one for each request would cost 3 µs."""


class HttpClient:
    """Requests to one server, one in flight per connection."""

    def __init__(self, address: Address, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._address = address
        self._connections_max = connections_max
        self._slots_taken = 0
        self._connections: set[ClientConnection] = set()
        self._idle: list[ClientConnection] = []
        self._waiting: deque[_Waiting] = deque()
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._host = f" HTTP/1.1\r\nhost: {address}\r\ncontent-length: "

    def post(
        self, path: str, body: bytes, *, headers: Mapping[str, str], within_s: float
    ) -> Coroutine[None, None, Answer]:
        """The server's answer to one POST, whatever its status."""
        return self.ask("POST", path, body, headers=headers, within_s=within_s)

    def get(self, path: str, *, within_s: float) -> Coroutine[None, None, Answer]:
        """The server's answer to one GET, whatever its status."""
        return self.ask("GET", path, b"", headers={}, within_s=within_s)

    def put(
        self, path: str, body: bytes, *, headers: Mapping[str, str], within_s: float
    ) -> Coroutine[None, None, Answer]:
        """The server's answer to one PUT, whatever its status."""
        return self.ask("PUT", path, body, headers=headers, within_s=within_s)

    async def ask(self, method: str, path: str, body: bytes, *, headers: Mapping[str, str], within_s: float) -> Answer:
        """The server's answer to one request, whatever its status."""
        head = f"{method} {path}{self._host}{len(body)}\r\n"
        for name, value in headers.items():
            head += f"{name}: {value}\r\n"
        request = f"{head}\r\n".encode("latin-1") + body
        now_s = time.monotonic()
        deadline = (now_s + within_s, within_s)
        connection = self._take_idle(now_s) or await self._connection(deadline)
        if self._sweeping is None:
            self._watch()
        try:
            return await connection.exchange(request, deadline)
        finally:
            self._put_back(connection)

    def close(self) -> None:
        """Close the idle connections; those in use close when their answer is there."""
        self._is_closed = True
        while self._idle:
            self._drop(self._idle.pop())

    def _take_idle(self, now_s: float) -> ClientConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and now_s - connection.idle_since_s < IDLE_MAX_S:
                return connection
            self._drop(connection)
        return None

    def _put_back(self, connection: ClientConnection) -> None:
        if self._is_closed or not connection.is_reusable:
            self._drop(connection)
            return
        connection.idle_since_s = time.monotonic()
        if not self._waiting or not self._hand_over(connection):
            self._idle.append(connection)

    def _drop(self, connection: ClientConnection) -> None:
        connection.abort()
        self._connections.discard(connection)
        self._free_slot()

    def _free_slot(self) -> None:
        if not self._hand_over(None):
            self._slots_taken -= 1

    def _hand_over(self, connection: ClientConnection | None) -> bool:
        """Give the next who waits a connection, or the slot for a new one; False if nobody waits."""
        while self._waiting:
            turn = self._waiting.popleft().turn
            if not turn.done():
                turn.set_result(connection)
                return True
        return False

    async def _connection(self, deadline: Deadline) -> ClientConnection:
        """A new connection, or one that somebody else is done with."""
        if self._slots_taken < self._connections_max:
            self._slots_taken += 1
        else:
            connection = await self._turn(deadline)
            if connection is not None:
                if connection.is_reusable:
                    return connection
                connection.abort()  # it broke on its way to us, and its slot is ours
                self._connections.discard(connection)
        try:
            connection = await self._connect(deadline)
        except BaseException:
            self._free_slot()
            raise
        self._connections.add(connection)
        return connection

    async def _turn(self, deadline: Deadline) -> ClientConnection | None:
        """A connection that somebody else is done with, or None: then the slot of a closed one is ours."""
        if len(self._waiting) >= WAITING_MAX:
            raise NotSentError(f"{WAITING_MAX} requests wait for a connection to {self._address} already")
        turn: asyncio.Future[ClientConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(turn=turn, deadline=deadline))
        if self._sweeping is None:
            self._watch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                connection = turn.result()  # it was our turn, and we do not take it
                if connection is None:
                    self._free_slot()
                else:
                    self._put_back(connection)
            raise

    async def _connect(self, deadline: Deadline) -> ClientConnection:
        loop = asyncio.get_running_loop()
        at_s, within_s = deadline
        try:
            async with asyncio.timeout(at_s - time.monotonic()):
                _, connection = await loop.create_connection(
                    lambda: ClientConnection(self._address, loop), self._address.host, self._address.port
                )
        except TimeoutError:
            raise NotSentError(f"{self._address} took no connection within {within_s:g} s") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be looked up
            why = getattr(error, "strerror", None) or error
            raise NotSentError(f"cannot connect to {self._address}: {why}") from None
        return connection

    def _watch(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def _sweep(self) -> None:
        """End every wait whose time is over, and come back as long as anybody waits."""
        now_s = time.monotonic()
        for waiting in self._waiting:
            at_s, within_s = waiting.deadline
            if at_s <= now_s and not waiting.turn.done():
                waiting.turn.set_exception(
                    NotSentError(f"no connection to {self._address} was free {within_s:g} s long")
                )
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.turn.done())
        in_flight = [connection.expire(now_s) for connection in self._connections]
        self._sweeping = None
        if self._waiting or any(in_flight):
            self._watch()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Somebody who waits for a connection."""

    turn: asyncio.Future[ClientConnection | None]
    deadline: Deadline
