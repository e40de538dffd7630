"""How long orders take from their acceptance to their first final status, as far as this process can tell.

Promises: bounded, and a fraction of a microsecond per order. An order that another replica accepted, or this process
before a restart, is not measured here; nor are those that are forgotten when too many have not settled.
"""

from __future__ import annotations

from system.metrics import Histogram, Metrics

REMEMBERED_MAX = 100_000

_NS = 1_000_000_000


class SettleTimes:
    """Orders accepted and not settled, by id, with the moment they were created."""

    def __init__(self, metrics: Metrics) -> None:
        self._created_at_ns: dict[str, int] = {}
        self._seconds: Histogram = metrics.histogram(
            "order_settled_seconds", "Time from an order's creation to the commit of its first final status"
        )

    def began(self, order_id: str, created_at_ns: int) -> None:
        """An order is about to be published."""
        if len(self._created_at_ns) >= REMEMBERED_MAX:
            # All, and not the oldest: a dict takes longer to find its first entry the more were taken from its front.
            # Few are worth keeping: most were settled by another replica.
            self._created_at_ns.clear()
        self._created_at_ns[order_id] = created_at_ns

    def settled(self, order_id: str, at_ns: int) -> None:
        """An order reached a final status; only the first one counts."""
        created_at_ns = self._created_at_ns.pop(order_id, None)
        if created_at_ns is not None:
            self._seconds.observe((at_ns - created_at_ns) / _NS)
