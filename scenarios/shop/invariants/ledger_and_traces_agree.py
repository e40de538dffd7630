"""E1: the ledger and the traces tell the same story.

They are independent channels about one fact: money was taken. A span of the provider that says *captured* for an order
of which the ledger knows nothing, or a ledger line of a charge that no span of the provider saw, means that one of the
two lies; then neither may be trusted for anything else.

Either side may be missing only because evidence is, so both findings are liveness findings. A span that was open when
the provider died has no outcome and no order; its trace says which order it was about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant
from scenarios.shop.invariants.finding import AboutOrder

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_CHARGES = """
WITH booked AS (
    SELECT key, count(*) AS charges FROM ledger WHERE kind = 'charge' GROUP BY key
), told AS (
    SELECT key, count(*) AS charges FROM spans
    WHERE service = 'provider' AND key IS NOT NULL
      AND json_extract_string(attributes, '$."charge.outcome"') = 'captured'
    GROUP BY key
), may_tell AS (
    SELECT t.key FROM spans s
    JOIN (SELECT key, trace_id FROM operations UNION SELECT key, trace_id FROM messages) t USING (trace_id)
    WHERE s.service = 'provider' AND s.ended_ns IS NULL
), compared AS (
    SELECT key, coalesce(b.charges, 0) AS booked, coalesce(t.charges, 0) AS told
    FROM booked b FULL JOIN told t USING (key)
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeWithoutLedger(AboutOrder):
    """The provider's spans say captured more often than its ledger has charges."""

    told: int
    booked: int

    def sentence(self) -> str:
        """Say it."""
        return (
            f"order {self.order}: the provider's spans say captured {self.told} times, its ledger {self.booked} times"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeWithoutSpan(AboutOrder):
    """The ledger has more charges than spans of the provider tell of."""

    told: int
    booked: int

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order}: the ledger holds {self.booked} charges, the provider's spans tell of {self.told}"


def _look(evidence: Evidence) -> Examination:
    unbooked = evidence.query(_CHARGES + "SELECT key, told, booked FROM compared WHERE told > booked ORDER BY key")
    untold = evidence.query(
        _CHARGES
        + """
        SELECT key, told, booked FROM compared
        WHERE booked > told AND key NOT IN (SELECT key FROM may_tell WHERE key IS NOT NULL) ORDER BY key
        """
    )
    return Examination(
        examined=evidence.count(_CHARGES + "SELECT count(*) FROM compared"),
        liveness=(
            *(ChargeWithoutLedger(order=key, told=told, booked=booked) for key, told, booked in unbooked),
            *(ChargeWithoutSpan(order=key, told=told, booked=booked) for key, told, booked in untold),
        ),
    )


ledger_and_traces_agree = Invariant(
    id="E1",
    name="ledger and traces agree",
    claim="every charge in the ledger is told by a span of the provider, and the other way round",
    needs=("ledger", "spans", "operations"),
    look=_look,
)
