"""Steady load for tests: orders placed one after another at a rate, whatever becomes of the earlier ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from system.tests.shop import Shop

ANSWER_WITHIN_S = 12.0


@dataclass(slots=True, kw_only=True)
class Load:
    """What was asked and how it was answered. unknown: no answer came, so nobody can tell."""

    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def begun(self) -> int:
        """How many orders have an end, whatever it is."""
        return len(self.accepted) + len(self.refused) + len(self.unknown)

    async def wait_accepted(self, count: int, *, within_s: float = 10.0) -> None:
        """Return when so many orders have been accepted."""
        async with asyncio.timeout(within_s):
            while len(self.accepted) < count:  # noqa: ASYNC110 - the placing of orders has no event to wait for
                await asyncio.sleep(0.005)


@asynccontextmanager
async def load(shop: Shop, *, rate_per_s: float, prefix: str = "load", at: str = "orders") -> AsyncIterator[Load]:
    """Place orders within the block; when it ends, each has its answer or none in time."""
    seen = Load()

    async def place(key: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                reply = await shop.place(key, at=at)
        except (OSError, TimeoutError, EOFError):
            seen.unknown.append(key)
            return
        seen.statuses.append(reply.status)
        if reply.status == 202:
            seen.accepted.append(key)
        elif reply.status < 500 or "order_id" not in reply.body.decode():
            seen.refused.append(key)
        else:
            seen.unknown.append(key)

    async with asyncio.TaskGroup() as orders:

        async def place_all() -> None:
            loop = asyncio.get_running_loop()
            began_s, number = loop.time(), 0
            while True:
                orders.create_task(place(f"{prefix}-{number}"))
                number += 1
                await asyncio.sleep(max(0.0, began_s + number / rate_per_s - loop.time()))

        placing = asyncio.create_task(place_all())
        try:
            yield seen
        finally:
            placing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await placing
