"""I18: an order is undone exactly when its customer asked for it.

Asked means that the customer was answered 202, or that the broker stored the `OrderCancelled`. The order then ends
CANCELLED, REFUNDED, or DECLINED (there was nothing to undo), but never PAID. And nobody else's order is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

CANCELLED = "orders.cancelled"

_CANCELLED = f"""
WITH cancelled AS (
    SELECT key, min(at_ns) AS at_ns FROM (
        SELECT key, ended_ns AS at_ns FROM operations WHERE kind = 'cancel' AND outcome = 'ok'
        UNION ALL
        SELECT key, stored_ns FROM messages WHERE subject = '{CANCELLED}' AND key IS NOT NULL
    ) GROUP BY key
), asked AS (
    SELECT key FROM cancelled UNION SELECT key FROM operations WHERE kind = 'cancel' AND outcome = 'unknown'
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotUndone(AboutOrder):
    """An order whose cancellation was accepted, and that is not undone. seen: its last state."""

    seen: str

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was cancelled, and its last state is {self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneUnasked(AboutOrder):
    """An order that was undone although nobody is on record as having cancelled it. seen: its last state."""

    seen: str

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} is {self.seen}, and nobody cancelled it"


def _look(evidence: Evidence) -> Examination:
    rows = evidence.query(
        _CANCELLED
        + """
        SELECT c.key, coalesce(s.state, 'unread') FROM cancelled c LEFT JOIN states s USING (key)
        WHERE coalesce(s.state, 'unread') NOT IN ('CANCELLED', 'REFUNDED', 'DECLINED') ORDER BY c.at_ns, c.key
        """
    )
    unasked = evidence.query(
        _CANCELLED
        + """
        SELECT key, state FROM states
        WHERE state IN ('CANCELLED', 'REFUNDED') AND key NOT IN (SELECT key FROM asked) ORDER BY settled_ns, key
        """
    )
    return Examination(
        examined=evidence.count("SELECT count(*) FROM states"),
        liveness=(
            *(NotUndone(order=key, seen=state) for key, state in rows),
            *(UndoneUnasked(order=key, seen=state) for key, state in unasked),
        ),
    )


cancelled_means_undone = Invariant(
    id="I18",
    name="cancelled means undone",
    claim="an order whose cancellation was accepted ends cancelled, refunded or declined, and no other is undone",
    needs=("operations", "messages", "states"),
    look=_look,
)
