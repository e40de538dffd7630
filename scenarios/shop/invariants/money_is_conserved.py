"""I15: what is given back is what was taken.

Per order, what the ledger says was refunded, if anything was, is what it says was charged. Together with I3 (what the
customer sees is what happened) and I4 (what was taken is what was asked for) the totals agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundedOtherwise(AboutOrder):
    """More, or less, was given back for an order than was taken. cents: in all."""

    charged_cents: int
    refunded_cents: int

    def sentence(self) -> str:
        """Say it."""
        taken, given = self.charged_cents / 100, self.refunded_cents / 100
        return f"order {self.order} was charged {taken:.2f} and refunded {given:.2f}"


def _look(evidence: Evidence) -> Examination:
    rows = evidence.query(
        """
        SELECT key, coalesce(sum(amount_minor) FILTER (kind = 'charge'), 0) AS charged,
               sum(amount_minor) FILTER (kind = 'refund') AS refunded
        FROM ledger GROUP BY key HAVING refunded <> charged ORDER BY min(seq)
        """
    )
    findings = tuple(
        RefundedOtherwise(order=key, charged_cents=int(charged), refunded_cents=int(refunded))
        for key, charged, refunded in rows
    )
    return Examination(
        examined=evidence.count("SELECT count(DISTINCT key) FROM ledger WHERE kind IN ('charge', 'refund')"),
        # A refund without its charge may only be missing it, and one that is too small the rest; two refunds of one
        # charge were both seen.
        safety=tuple(finding for finding in findings if 0 < finding.charged_cents < finding.refunded_cents),
        liveness=tuple(finding for finding in findings if not 0 < finding.charged_cents < finding.refunded_cents),
    )


money_is_conserved = Invariant(
    id="I15",
    name="money is conserved",
    claim="an order that is refunded is refunded what it was charged",
    needs=("ledger",),
    look=_look,
)
