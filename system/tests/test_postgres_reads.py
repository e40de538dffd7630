"""The line before the connections that read: whoever waits is not forgotten when a connection goes."""

from __future__ import annotations

import asyncio
from typing import cast

from system.database.postgres_lines import Line
from system.database.postgres_reads import Readers
from system.database.statements import Row, Statement, Value
from system.tests.parts import wait_until

STATEMENT = Statement("SELECT $1")


class Server:
    """A connection that answers with what it is asked."""

    def __init__(self) -> None:
        self.is_lost = False

    def is_closed(self) -> bool:
        """Whether it is gone."""
        return self.is_lost

    async def fetch(self, _sql: str, *parameters: Value) -> list[Row]:
        """Answer, soon."""
        await asyncio.sleep(0)
        return [parameters]


class OneTimeLine:
    """A line that opens once, and never again: the server takes no more connections."""

    def __init__(self) -> None:
        self.connection = Server()
        self.busy_since_s: float | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened = 0

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return not self.connection.is_lost

    async def open(self) -> asyncio.Future[None]:
        """Open it."""
        self._opened += 1
        if self._opened > 1:
            await asyncio.Event().wait()
        return self.lost

    def lose(self) -> None:
        """As when the server goes away."""
        self.connection.is_lost = True
        self.lost.set_result(None)


async def test_a_question_that_wakes_a_connection_just_lost_is_asked_on_another() -> None:
    """Three others are idle, and everybody who comes after would wait behind it."""
    lines = [OneTimeLine() for _ in range(4)]
    readers = Readers([cast("Line", line) for line in lines], location="here", answer_within_s=5)
    opened = [asyncio.get_running_loop().create_future() for _ in lines]
    serving = [
        asyncio.create_task(readers.serve(cast("Line", line), first)) for line, first in zip(lines, opened, strict=True)
    ]
    await asyncio.gather(*opened)
    await wait_until(lambda: len(readers._idle) == len(lines))

    lines[-1].lose()  # it would be asked next, and its own task has not heard of the loss yet
    async with asyncio.timeout(2):
        answers = await asyncio.gather(*(readers.read(STATEMENT, (number,)) for number in range(3)))

    assert answers == [[(0,)], [(1,)], [(2,)]]
    for task in serving:
        task.cancel()
