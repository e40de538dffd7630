"""Orders that were accepted and are not in the table yet, so that a customer sees an order at once.

Promises: bounded; an order stays here from its acceptance until the projection has committed it, even when the
projection is faster than the acceptance. Lives in memory: after a restart the projection catches up instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from system.events import OrderCreated

RECENT_MAX = 100_000


class TooManyRecentError(Exception):
    """The projection is so far behind that no more orders can be held; nothing was published."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    order: OrderCreated
    publishing: int
    is_accepted: bool


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
            raise TooManyRecentError
        else:
            self._entries[order.order_id] = _Entry(order=order, publishing=1, is_accepted=False)

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
