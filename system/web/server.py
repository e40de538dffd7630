"""An HTTP/1.1 server for small JSON services: asyncio.Protocol over httptools.

Promises: responses leave in the order of their requests, however a client pipelines; the requests of one connection
are handled one after the other, so an order and a question about it cannot overtake each other. Bodies, heads,
pipelines and connections are bounded, and what exceeds a bound is refused without being read into memory. Once `drain`
began, no new request reaches the handler: it is answered 503, which a client can tell apart from a lost answer.

Does not: TLS, HTTP/2, streaming bodies, compression. A client that goes away does not cancel what it asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from email.utils import formatdate
from types import TracebackType
from typing import Self

from system.errors import StartError
from system.settings import Address
from system.web.connection import HttpConnection
from system.web.messages import Handler, Request, Response, problem

log = logging.getLogger(__name__)

BODY_MAX_BYTES = 64 * 1024
BACKLOG_MAX = 1024
SWEEP_EVERY_S = 5.0
DRAIN_WITHIN_S = 6.0
DRAIN_LINGER_S = 0.1
"""How long idle connections stay open during `drain`, so that a request already on its way gets its 503."""


class ListenError(StartError):
    """The address cannot be listened on; the message is one sentence for a person."""


class Server:
    """Listens on one address and hands every request to one handler, from `async with` until its end."""

    def __init__(self, address: Address, handler: Handler, *, body_max_bytes: int = BODY_MAX_BYTES) -> None:
        self.body_max_bytes = body_max_bytes
        self.is_draining = False
        self._address = address
        self._handler = handler
        self._connections: set[HttpConnection] = set()
        self._tasks = asyncio.TaskGroup()
        self._sweeper: asyncio.Task[None] | None = None
        self._listener: asyncio.Server | None = None
        self._turns = 0
        self._no_turns = asyncio.Event()
        self._no_turns.set()
        self._date = (0, "")

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                lambda: HttpConnection(self), self._address.host, self._address.port, backlog=BACKLOG_MAX
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ListenError(f"cannot listen on {self._address}: {reason}; choose another address") from None
        await self._tasks.__aenter__()
        self._sweeper = self._tasks.create_task(self._sweep(), name="idle connections")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_listening()
        for connection in list(self._connections):
            connection.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def drain(self) -> None:
        """Stop listening, answer 503 to whatever still arrives, and wait, bounded, for the requests in flight."""
        self.is_draining = True
        self._stop_listening()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_WITHIN_S):
                await self._no_turns.wait()
        if self._turns:
            log.error("%d requests were still in flight after %g s", self._turns, DRAIN_WITHIN_S)
        if self._connections:
            await asyncio.sleep(DRAIN_LINGER_S)
        for connection in list(self._connections):
            connection.close()

    async def answer(self, request: Request) -> Response:
        """The handler's response; whatever escapes the handler becomes a 500 here, at the edge."""
        if self.is_draining:
            return problem(503, "this service is stopping; the request was not looked at", retry_after_s=1)
        try:
            return await self._handler(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return problem(500, "the service failed; whether the request had an effect is unknown")

    # What connections call.

    def connection_opened(self, connection: HttpConnection) -> int:
        """Note a connection; returns how many there are now."""
        self._connections.add(connection)
        return len(self._connections)

    def connection_closed(self, connection: HttpConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a connection's work in a task that the server waits for."""
        self._tasks.create_task(work)

    def turn_began(self) -> None:
        """Something is to be answered."""
        self._turns += 1
        self._no_turns.clear()

    def turn_ended(self) -> None:
        """It was answered, or nobody is left to answer to."""
        self._turns -= 1
        if not self._turns:
            self._no_turns.set()

    def date_line(self) -> str:
        """The Date header, formatted once a second."""
        now_s = int(time.time())
        if now_s != self._date[0]:
            self._date = (now_s, f"date: {formatdate(now_s, usegmt=True)}")
        return self._date[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = time.monotonic()
            for connection in list(self._connections):
                connection.expire(now_s)
