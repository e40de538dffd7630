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

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_CHARGES = """
WITH booked AS (
    SELECT DISTINCT key FROM ledger WHERE kind = 'charge'
), told AS (
    SELECT DISTINCT key FROM spans
    WHERE service = 'provider' AND key IS NOT NULL
      AND json_extract_string(attributes, '$."charge.outcome"') = 'captured'
), may_tell AS (
    SELECT key FROM told
    UNION
    SELECT o.key FROM spans s JOIN operations o USING (trace_id) WHERE s.service = 'provider' AND s.ended_ns IS NULL
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeWithoutLedger:
    """The provider's span says captured, its ledger has no such charge."""

    order: str

    @property
    def key(self) -> str:
        """The order."""
        return self.order

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order}: the provider's span says captured, its ledger holds no charge"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeWithoutSpan:
    """The ledger has a charge of which no span of the provider tells."""

    order: str

    @property
    def key(self) -> str:
        """The order."""
        return self.order

    def sentence(self) -> str:
        """Say it."""
        return f"order {self.order}: the ledger holds a charge, no span of the provider tells of it"


def _look(evidence: Evidence) -> Examination:
    unbooked = evidence.query(_CHARGES + "SELECT key FROM told EXCEPT SELECT key FROM booked ORDER BY key")
    untold = evidence.query(_CHARGES + "SELECT key FROM booked EXCEPT SELECT key FROM may_tell ORDER BY key")
    return Examination(
        examined=evidence.count(_CHARGES + "SELECT count(*) FROM (SELECT key FROM booked UNION SELECT key FROM told)"),
        liveness=(
            *(ChargeWithoutLedger(order=key) for (key,) in unbooked),
            *(ChargeWithoutSpan(order=key) for (key,) in untold),
        ),
    )


ledger_and_traces_agree = Invariant(
    id="E1",
    name="ledger and traces agree",
    claim="every charge in the ledger is told by a span of the provider, and the other way round",
    needs=("ledger", "spans", "operations"),
    look=_look,
)
