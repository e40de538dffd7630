"""I3: a final order is PAID exactly when it was charged.

What the customer sees and what the card network did must agree. An order that is not final yet is none of this
invariant's business: whether it ever becomes final is I1's question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_FINAL = """
WITH final AS (
    SELECT s.key, s.state, s.settled_ns, s.key IN (SELECT key FROM ledger WHERE kind = 'charge') AS is_charged
    FROM states s WHERE s.is_final
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedButNotPaid:
    """The money moved, and the customer is told it did not."""

    order: str
    seen: str

    @property
    def key(self) -> str:
        """The order."""
        return self.order

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged, and its final state is {self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidWithoutCharge:
    """The customer is told it is paid, and no money moved."""

    order: str

    @property
    def key(self) -> str:
        """The order."""
        return self.order

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} is PAID, and the ledger holds no charge for it"


def _look(evidence: Evidence) -> Examination:
    charged = evidence.query(
        _FINAL + "SELECT key, state FROM final WHERE is_charged AND state <> 'PAID' ORDER BY settled_ns, key"
    )
    uncharged = evidence.query(
        _FINAL + "SELECT key FROM final WHERE NOT is_charged AND state = 'PAID' ORDER BY settled_ns, key"
    )
    return Examination(
        examined=evidence.count(_FINAL + "SELECT count(*) FROM final"),
        safety=tuple(ChargedButNotPaid(order=key, seen=state) for key, state in charged),
        liveness=tuple(PaidWithoutCharge(order=key) for (key,) in uncharged),
    )


paid_means_charged = Invariant(
    id="I3",
    name="paid means charged",
    claim="a final order is PAID exactly when the ledger holds a charge for it",
    needs=("ledger", "states"),
    look=_look,
)
