"""I1: every accepted order reaches a final state.

Accepted means that the customer was answered 202, or that the broker stored the `OrderCreated` (a PubAck whose answer
never reached the customer). Final means PAID or DECLINED, read through the public API, within `SETTLE_WITHIN_S` of the
last heal, or of the order itself when it came later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

SETTLE_WITHIN_S = 30.0
"""Twice what the breaker before the provider stays open at the most after a heal: it lets probes through then, and what
it had handed back comes again with jitter."""
CREATED = "orders.created"

_ACCEPTED = f"""
WITH accepted AS (
    SELECT key, min(at_ns) AS at_ns, bool_or(answered) AS answered, bool_or(stored) AS stored FROM (
        SELECT key, ended_ns AS at_ns, true AS answered, false AS stored
        FROM operations WHERE outcome = 'ok' AND kind = 'create'
        UNION ALL
        SELECT key, stored_ns, false, true FROM messages WHERE subject = '{CREATED}' AND key IS NOT NULL
    ) GROUP BY key
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedOrder(AboutOrder):
    """An accepted order that never became final.

    seen: its last state, `unread` when no final read exists. answered, stored: by whom it was accepted.
    """

    seen: str
    answered: bool
    stored: bool

    def sentence(self) -> str:
        """Say it."""
        accepted = "the customer was answered 202" if self.answered else "the customer was not answered"
        stored = "the broker stored it" if self.stored else "the broker never stored it"
        return f"order {self.order} was dropped: {accepted}, {stored}, and its last state is {self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LateOrder(AboutOrder):
    """An accepted order that became final, but too late. late_ms: after the deadline."""

    late_ms: int

    def sentence(self) -> str:
        """Say it."""
        return (
            f"order {self.order} became final {self.late_ms} ms after the {SETTLE_WITHIN_S:g} s it had after the heal"
        )


def _look(evidence: Evidence) -> Examination:
    dropped = evidence.query(
        _ACCEPTED
        + """
        SELECT a.key, coalesce(s.state, 'unread'), a.answered, a.stored
        FROM accepted a LEFT JOIN states s USING (key)
        WHERE NOT coalesce(s.is_final, false) ORDER BY a.at_ns, a.key
        """
    )
    late = evidence.query(
        _ACCEPTED
        + """
        SELECT a.key, (s.settled_ns - greatest(a.at_ns, heal.at_ns) - $1) // 1000000
        FROM accepted a JOIN states s USING (key)
        CROSS JOIN (SELECT coalesce(max(healed_ns), 0) AS at_ns FROM faults) heal
        WHERE s.is_final AND s.settled_ns - greatest(a.at_ns, heal.at_ns) > $1
        ORDER BY a.at_ns, a.key
        """,
        [round(SETTLE_WITHIN_S * 1_000_000_000)],
    )
    return Examination(
        examined=evidence.count(_ACCEPTED + "SELECT count(*) FROM accepted"),
        liveness=(
            *(
                DroppedOrder(order=key, seen=state, answered=answered, stored=stored)
                for key, state, answered, stored in dropped
            ),
            *(LateOrder(order=key, late_ms=late_ms) for key, late_ms in late),
        ),
    )


zero_dropped_orders = Invariant(
    id="I1",
    name="zero dropped orders",
    claim=f"every accepted order reaches a final state within {SETTLE_WITHIN_S:g} s of the heal",
    needs=("operations", "messages", "states"),
    look=_look,
)
