"""I3: what a final order says of the money is true.

What the customer sees and what the card network did must agree: PAID means that a charge stands, REFUNDED that one was
given back, DECLINED that the card was asked and said no, DECLINED and CANCELLED that no charge stands; and the amount
shown is the amount that was taken. An order that is not final yet is none of this invariant's
business: whether it ever becomes final is I1's question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_FINAL = """
WITH charged AS (
    SELECT DISTINCT key FROM ledger WHERE kind = 'charge'
), refunded AS (
    SELECT DISTINCT key FROM ledger WHERE kind = 'refund'
), final AS (
    SELECT s.key, s.state, s.settled_ns, r.key IS NOT NULL AS is_refunded,
           c.key IS NOT NULL AND r.key IS NULL AS is_charged
    FROM states s LEFT JOIN charged c ON c.key = s.key LEFT JOIN refunded r ON r.key = s.key WHERE s.is_final
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedButNotPaid(AboutOrder):
    """The money moved, and the customer is told it did not."""

    seen: str

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged, and its final state is {self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundNotMade(AboutOrder):
    """The customer is told that the money was given back, and it was not."""

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} is REFUNDED, and the ledger holds no refund for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclinedUnasked(AboutOrder):
    """The customer is told that the card was declined, and nobody asked it."""

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} is DECLINED, and the ledger holds no decline for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownOtherwise(AboutOrder):
    """The customer is shown another amount than was taken."""

    shown_cents: int
    cents: int

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged {self.cents / 100:.2f}, and shows {self.shown_cents / 100:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidWithoutCharge(AboutOrder):
    """The customer is told it is paid, and no money moved, or it was given back."""

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} is PAID, and the ledger holds no charge for it that stands"


def _look(evidence: Evidence) -> Examination:
    charged = evidence.query(
        _FINAL + "SELECT key, state FROM final WHERE is_charged AND state <> 'PAID' ORDER BY settled_ns, key"
    )
    uncharged = evidence.query(
        _FINAL + "SELECT key FROM final WHERE NOT is_charged AND state = 'PAID' ORDER BY settled_ns, key"
    )
    unrefunded = evidence.query(
        _FINAL + "SELECT key FROM final WHERE NOT is_refunded AND state = 'REFUNDED' ORDER BY settled_ns, key"
    )
    unasked = evidence.query(
        _FINAL
        + """
        SELECT key FROM final WHERE state = 'DECLINED' AND NOT is_charged
        AND key NOT IN (SELECT key FROM ledger WHERE kind = 'decline') ORDER BY settled_ns, key
        """
    )
    shown = evidence.query(
        """
        SELECT s.key, s.amount_minor, min(l.amount_minor) FROM states s JOIN ledger l ON l.key = s.key
        WHERE s.is_final AND l.kind = 'charge' AND s.amount_minor IS NOT NULL
        GROUP BY s.key, s.amount_minor HAVING NOT bool_or(l.amount_minor = s.amount_minor) ORDER BY s.key
        """
    )
    return Examination(
        examined=evidence.count(_FINAL + "SELECT count(*) FROM final"),
        # A charge that was seen may have been given back in a part of the ledger that was not.
        safety=(
            *(ChargedButNotPaid(order=key, seen=state) for key, state in charged if state == "DECLINED"),
            *(ShownOtherwise(order=key, shown_cents=seen, cents=taken) for key, seen, taken in shown),
        ),
        liveness=(
            *(DeclinedUnasked(order=key) for (key,) in unasked),
            *(ChargedButNotPaid(order=key, seen=state) for key, state in charged if state == "CANCELLED"),
            *(PaidWithoutCharge(order=key) for (key,) in uncharged),
            *(RefundNotMade(order=key) for (key,) in unrefunded),
        ),
    )


paid_means_charged = Invariant(
    id="I3",
    name="paid means charged",
    claim="a final order is PAID exactly when a charge stands, over what it shows, and DECLINED when the card said no",
    needs=("ledger", "states"),
    look=_look,
)
