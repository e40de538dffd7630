"""Orders that were accepted and are not in the table yet, so that a customer sees an order at once.

Promises: bounded; an order stays here from its acceptance until it is committed, even when the projection is faster
than the acceptance. Lives in memory: after a restart the projection catches up instead.

Another replica may commit what this one accepted, and tells nobody. So whoever is still here after `ASK_AFTER_S` is
looked up in the table now and then; a single replica hardly ever asks.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence

from system.database import DatabaseError
from system.events import OrderCreated

RECENT_MAX = 100_000
ASK_AFTER_S = 5.0
ASK_EVERY_S = 1.0
ASK_MAX = 8_192
"""Looked up at one time: more than the others commit for one replica in a second; it keeps the event loop for 5 ms."""


class TooManyRecentError(Exception):
    """The projection is so far behind that no more orders can be held; nothing was published."""


class _Entry:
    """publishing: how many publishes of this order are under way. since_s: noted, or last looked up."""

    __slots__ = ("is_accepted", "order", "publishing", "since_s")

    def __init__(self, order: OrderCreated) -> None:
        self.since_s = time.monotonic()
        self.order = order
        self.publishing = 1
        self.is_accepted = False


class RecentOrders:
    """Orders between their publish and their commit, by id."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def accepted(self, order_id: str) -> OrderCreated | None:
        """The order, if it was accepted and is not committed yet."""
        entry = self._entries.get(order_id)
        return entry.order if entry is not None and entry.is_accepted else None

    def expect(self, order: OrderCreated) -> None:
        """Note an order before it is published: the projection may see it before its publisher hears of it."""
        entry = self._entries.get(order.order_id)
        if entry is not None:
            entry.publishing += 1
        elif len(self._entries) >= RECENT_MAX:
            raise TooManyRecentError(f"{RECENT_MAX} orders are accepted and not in the table yet")
        else:
            self._entries[order.order_id] = _Entry(order)

    def accept(self, order: OrderCreated) -> None:
        """The order is in the stream; it counts from now on, unless it is committed already."""
        entry = self._entries.get(order.order_id)
        if entry is not None:
            entry.publishing -= 1
            entry.is_accepted = True
            entry.order = order

    def abandon(self, order_id: str) -> None:
        """This publish did not succeed; another of the same order still may."""
        entry = self._entries.get(order_id)
        if entry is None:
            return
        entry.publishing -= 1
        if entry.publishing <= 0 and not entry.is_accepted:
            del self._entries[order_id]

    def committed(self, order_id: str) -> None:
        """The table has it now."""
        self._entries.pop(order_id, None)

    async def forget_committed(self, which_are: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        """Look up who is here for long, again and again, and forget who is in the table; runs until cancelled.

        which_are: those of these ids that the table holds.
        """
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            await self.forget_once(which_are)

    async def forget_once(self, which_are: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        """Look up who is here for long, and forget who is in the table."""
        now_s = time.monotonic()
        # Entries stand in the order in which they came or were last looked up: the young ones are all behind.
        oldest = itertools.islice(self._entries.items(), ASK_MAX)
        old = itertools.takewhile(lambda item: now_s - item[1].since_s >= ASK_AFTER_S, oldest)
        asked = [order_id for order_id, entry in old if entry.is_accepted]
        if not asked:
            return
        try:
            found = await which_are(asked)
        except DatabaseError:
            return  # readiness tells of it; they are asked for again
        for order_id in asked:
            entry = self._entries.pop(order_id, None)
            if entry is not None and order_id not in found:
                entry.since_s = now_s
                self._entries[order_id] = entry
