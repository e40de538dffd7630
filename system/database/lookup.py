"""Rows found by their key, many with one question.

Orders arrive in batches, and a question costs about the same for one as for sixty-four: SQLite looks at its log again
after each commit (10 µs a question by itself, 1 µs in company), and PostgreSQL is asked over the network. So whoever
asks in the same turn of the event loop is answered together.

Promises: everybody is told of their own row as last committed, or why it could not be had; whoever goes away meanwhile
hinders nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from system.database.statements import Statement

if TYPE_CHECKING:
    from system.database import Database

_SIZES = (1, 4, 16, 64)
"""For so many keys there is a statement, prepared once; the next larger one is filled up with repetitions."""

Found = TypeVar("Found")


def finding(select: str) -> dict[int, Statement]:
    """The statements that find rows by key. select: up to and including `WHERE <key column> IN`."""
    return {size: Statement(f"{select} ({', '.join(f'${n + 1}' for n in range(size))})") for size in _SIZES}


class Lookup(Generic[Found]):
    """Asks one table.

    statements: as `finding` makes them, once, as a constant; the key is the first column. make: a row from its columns.
    """

    def __init__(self, database: Database, statements: dict[int, Statement], make: Callable[..., Found]) -> None:
        self._database = database
        self._statements = statements
        self._make = make
        self._asked: list[tuple[str, asyncio.Future[Found | None]]] = []
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def unanswered(self) -> Iterable[asyncio.Task[None]]:
        """What is under way, for those who wait for its end."""
        return self._asking

    async def find(self, key: str) -> Found | None:
        """The row under this key."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Found | None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._ask)  # when everybody who comes in this turn has asked
        self._asked.append((key, found))
        return await found

    async def find_all(self, keys: Sequence[str]) -> dict[str, Found]:
        """The rows there are under these keys."""
        rows: dict[str, Found] = {}
        for first in range(0, len(keys), _SIZES[-1]):
            some = list(keys[first : first + _SIZES[-1]])
            size = next(size for size in _SIZES if size >= len(some))
            some += some[-1:] * (size - len(some))
            for row in await self._database.read(self._statements[size], some):
                rows[cast("str", row[0])] = self._make(*cast("tuple[Any, ...]", row))
        return rows

    def _ask(self) -> None:
        asked, self._asked = self._asked, []
        task = asyncio.get_running_loop().create_task(self._answer(asked))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _answer(self, asked: Sequence[tuple[str, asyncio.Future[Found | None]]]) -> None:
        try:
            rows = await self.find_all([key for key, _ in asked])
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            for _, found in asked:
                if not found.done():
                    found.set_exception(error)
        else:
            for key, found in asked:
                if not found.done():
                    found.set_result(rows.get(key))
