"""An HTTP/1.1 server for small JSON services: asyncio.Protocol over httptools.

Promises: responses leave in the order of their requests, however a client pipelines; the requests of one connection
are handled one after the other, so an order and a question about it cannot overtake each other. Each is handled in a
context of its own, so nothing that a handler sets there is seen by the next; a handler that has its response at once
costs no task. Bodies, heads, pipelines and connections are bounded, and what exceeds a bound is refused without being
read into memory. Once `drain` began, no new request reaches the handler: it is answered 503, which a client can tell
apart from a lost answer.

Does not: TLS, HTTP/2, streaming bodies, compression. A client that goes away does not cancel what it asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Awaitable
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
        self._loop: asyncio.AbstractEventLoop
        self._context = contextvars.copy_context()
        self._connections: set[HttpConnection] = set()
        # Not a TaskGroup: it hears of the end of each task in a callback of its own, which costs 0.7 µs a request.
        self._tasks: dict[HttpConnection, asyncio.Task[None]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._listener: asyncio.Server | None = None
        self._turns = 0
        self._no_turns: asyncio.Future[None] | None = None
        self._date = (0, b"")

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            self._listener = await self._loop.create_server(
                lambda: HttpConnection(self), self._address.host, self._address.port, backlog=BACKLOG_MAX
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ListenError(f"cannot listen on {self._address}: {reason}; choose another address") from None
        self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_listening()
        for connection in list(self._connections):
            connection.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if error is not None:
            self._cancel_tasks()
        try:
            await self._wait_for_tasks()
        except asyncio.CancelledError:
            self._cancel_tasks()
            await self._wait_for_tasks()
            raise

    async def drain(self) -> None:
        """Stop listening, answer 503 to whatever still arrives, and wait, bounded, for the requests in flight."""
        self.is_draining = True
        self._stop_listening()
        if self._turns:
            self._no_turns = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_WITHIN_S):
                    await self._no_turns
            self._no_turns = None
        if self._turns:
            log.error("%d requests were still in flight after %g s", self._turns, DRAIN_WITHIN_S)
        if self._connections:
            await asyncio.sleep(DRAIN_LINGER_S)
        for connection in list(self._connections):
            connection.close()

    # What connections call.

    def begin(self, request: Request, connection: HttpConnection) -> Response | None:
        """The handler's response; None if the handler takes time: then a task will bring it to the connection."""
        if self.is_draining:
            return problem(503, "this service is stopping; the request was not looked at", retry_after_s=1)
        context = self._context.copy()
        try:
            answer = context.run(self._handler, request)
        except Exception as error:  # noqa: BLE001 - logged there
            return context.run(_failed, request, error)
        if isinstance(answer, Response):
            return answer
        waiting = self._wait_for(answer, request, connection)
        self._tasks[connection] = self._loop.create_task(waiting, context=context)
        return None

    def connection_opened(self, connection: HttpConnection) -> int:
        """Note a connection; returns how many there are now."""
        self._connections.add(connection)
        return len(self._connections)

    def connection_closed(self, connection: HttpConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def turn_began(self) -> None:
        """Something is to be answered."""
        self._turns += 1

    def turn_ended(self) -> None:
        """It was answered, or nobody is left to answer to."""
        self._turns -= 1
        if self._no_turns is not None and not self._turns and not self._no_turns.done():
            self._no_turns.set_result(None)

    def date_line(self) -> bytes:
        """The Date header with the end of its line, formatted once a second."""
        now_s = int(time.time())
        if now_s != self._date[0]:
            self._date = (now_s, f"date: {formatdate(now_s, usegmt=True)}\r\n".encode())
        return self._date[1]

    # The rest is private.

    async def _wait_for(self, answer: Awaitable[Response], request: Request, connection: HttpConnection) -> None:
        """Bring a connection what it waits for; whatever escapes the handler becomes a 500 here, at the edge."""
        try:
            response = await answer
        except Exception as error:  # noqa: BLE001 - logged there
            response = _failed(request, error)
        except BaseException:
            connection.abandon()
            raise
        finally:
            del self._tasks[connection]
        connection.answered(response)

    def _cancel_tasks(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _wait_for_tasks(self) -> None:
        while pending := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(pending)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for connection in list(self._connections):
            connection.expire(now_s)
        self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)


def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return problem(500, "the service failed; whether the request had an effect is unknown")
