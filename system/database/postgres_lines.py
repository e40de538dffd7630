"""Connections to a PostgreSQL server that are made again whenever they are lost, and what their errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import asyncpg

CONNECT_WITHIN_S = 3.0
CONNECT_AGAIN_MIN_S = 0.05
CONNECT_AGAIN_MAX_S = 2.0
CLOSE_WITHIN_S = 1.0

Connection = Any  # asyncpg has no types

FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Everything that asyncpg raises when the server or the network does not do as it is told."""
UNSENDABLE = (OverflowError, ValueError, TypeError, IndexError)
"""What is raised for a value, or a row, that asyncpg cannot even send."""


def said(error: Exception) -> str:
    """One line, without the details that PostgreSQL adds: they would quote the row."""
    return str(error.args[0]).partition("\n")[0] if error.args and error.args[0] else type(error).__name__


class Backoff:
    """Growing waits between attempts to connect."""

    def __init__(self) -> None:
        self._wait_s = CONNECT_AGAIN_MIN_S

    async def wait(self) -> None:
        """Let some time pass; not the same for all processes, which would come all at once when the server is back."""
        await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self._wait_s = min(2 * self._wait_s, CONNECT_AGAIN_MAX_S)


class Line:
    """One connection, or its absence. busy_since_s: when what it is asked now was asked (`monotonic`)."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], on_away: Callable[[Exception], None]) -> None:
        self._connect = connect
        self._on_away = on_away
        self._backoff = Backoff()
        self._opened_at_s = 0.0
        self.connection: Connection = None
        self.busy_since_s: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be asked something."""
        return self.connection is not None and not self.connection.is_closed()

    async def open(self) -> asyncio.Future[None]:
        """Connect, however long it takes; the future is done once the connection is lost."""
        if monotonic() - self._opened_at_s < CONNECT_AGAIN_MAX_S:
            await self._backoff.wait()  # a server that only lets us in to throw us out is no better than none
        else:
            self._backoff = Backoff()
        while True:
            try:
                self.connection = connection = await self._connect()
            except (*FAILURES, ValueError) as error:
                self._on_away(error)
            else:
                self._opened_at_s = monotonic()
                return _loss_of(connection)
            await self._backoff.wait()

    async def close(self) -> None:
        """Say good-bye to the server, if it listens."""
        if self.is_open:
            with contextlib.suppress(*FAILURES):
                await self.connection.close(timeout=CLOSE_WITHIN_S)
        self.cut()

    def cut(self) -> None:
        """Let go of it now; whoever waits for an answer on it is told."""
        if self.connection is not None:
            self.connection.terminate()


def _loss_of(connection: Connection) -> asyncio.Future[None]:
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.add_termination_listener(lambda _: None if lost.done() else lost.set_result(None))
    return lost
