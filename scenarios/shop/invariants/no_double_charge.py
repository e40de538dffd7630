"""I2: no order is charged twice.

The ledger alone decides: it is where money really moved, written and fsynced by the provider before it answers. How
often payments asked, and what it believes, plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleCharge(AboutOrder):
    """One order, more than one charge. cents: what was taken in all."""

    charges: int
    cents: int

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged {self.charges} times, {self.cents / 100:.2f} in all"


def _look(evidence: Evidence) -> Examination:
    rows = evidence.query(
        """
        SELECT key, count(*), sum(amount_minor) FROM ledger WHERE kind = 'charge'
        GROUP BY key HAVING count(*) > 1 ORDER BY min(seq)
        """
    )
    return Examination(
        examined=evidence.count("SELECT count(DISTINCT key) FROM ledger WHERE kind = 'charge'"),
        safety=tuple(DoubleCharge(order=key, charges=charges, cents=int(cents)) for key, charges, cents in rows),
    )


no_double_charge = Invariant(
    id="I2",
    name="no double charge",
    claim="the provider's ledger holds at most one charge for each order",
    needs=("ledger",),
    look=_look,
)
