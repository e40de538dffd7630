"""I4: every charge has an order that was not refused, and is for its amount.

The order is known from the customer who asked for it or from the broker that stored it; the amount is what the customer
asked for, as the workload recorded it, not what the system says of itself. An order that every answer refused is one
that nobody placed: a customer who was told no will place it elsewhere. Refusals of an order that was accepted as well,
or of which nobody can tell, count for nothing: neither does what they asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_CHARGES = """
WITH asked AS (
    SELECT DISTINCT key, round(json_extract(request, '$.total_amount')::DOUBLE * 100)::BIGINT AS cents,
           coalesce(json_extract_string(request, '$.currency'), 'EUR') AS currency
    FROM operations WHERE kind = 'create' AND outcome <> 'failed'
), refused AS (
    SELECT DISTINCT key FROM operations WHERE kind = 'create' AND key NOT IN (SELECT key FROM asked)
), known AS (
    SELECT key FROM asked UNION SELECT key FROM messages WHERE key IS NOT NULL UNION SELECT key FROM refused
), charges AS (
    SELECT key, seq, amount_minor, currency FROM ledger WHERE kind = 'charge'
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeWithoutOrder(AboutOrder):
    """Money was taken for an order that nobody placed."""

    cents: int

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged {self.cents / 100:.2f}, and nobody ever placed it"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedAndCharged(AboutOrder):
    """The customer was told no, and paid."""

    cents: int

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was refused, and charged {self.cents / 100:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongCurrency(AboutOrder):
    """Other money was taken than was asked for."""

    currency: str
    asked: str

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged in {self.currency}, it was in {self.asked}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongAmount(AboutOrder):
    """Another amount was taken than was asked for."""

    cents: int
    asked_cents: int

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order} was charged {self.cents / 100:.2f}, it was for {self.asked_cents / 100:.2f}"


def _look(evidence: Evidence) -> Examination:
    unknown = evidence.query(
        _CHARGES + "SELECT key, amount_minor FROM charges WHERE key NOT IN (SELECT key FROM known) ORDER BY seq"
    )
    wrong = evidence.query(
        _CHARGES
        + """
        SELECT c.key, c.amount_minor, min(a.cents) FROM charges c JOIN asked a USING (key)
        GROUP BY c.key, c.seq, c.amount_minor HAVING NOT bool_or(c.amount_minor = a.cents) ORDER BY c.seq
        """
    )
    foreign = evidence.query(
        _CHARGES
        + """
        SELECT c.key, c.currency, min(a.currency) FROM charges c JOIN asked a USING (key)
        GROUP BY c.key, c.seq, c.currency HAVING NOT bool_or(c.currency = a.currency) ORDER BY c.seq
        """
    )
    refused = evidence.query(
        _CHARGES + "SELECT key, amount_minor FROM charges WHERE key IN (SELECT key FROM refused) ORDER BY seq"
    )
    return Examination(
        examined=evidence.count(_CHARGES + "SELECT count(*) FROM charges"),
        safety=(
            *(WrongAmount(order=key, cents=cents, asked_cents=asked) for key, cents, asked in wrong),
            *(WrongCurrency(order=key, currency=currency, asked=asked) for key, currency, asked in foreign),
        ),
        # An operation that is missing may have been accepted.
        liveness=(
            *(ChargeWithoutOrder(order=key, cents=cents) for key, cents in unknown),
            *(RefusedAndCharged(order=key, cents=cents) for key, cents in refused),
        ),
    )


no_effect_without_cause = Invariant(
    id="I4",
    name="no effect without a cause",
    claim="every charge is for an order that somebody placed and was not refused, and for its amount",
    needs=("ledger", "operations", "messages"),
    look=_look,
)
