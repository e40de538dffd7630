"""What the order and payment system promises, each promise a query over evidence.

One invariant a file; each file holds the claim, the query and the finding. `INVARIANTS` is all of them, in the order of
reports.
"""

from __future__ import annotations

from harness.invariants.connected_traces import connected_traces
from scenarios.shop.invariants.cancelled_means_undone import cancelled_means_undone
from scenarios.shop.invariants.ledger_and_traces_agree import ledger_and_traces_agree
from scenarios.shop.invariants.money_is_conserved import money_is_conserved
from scenarios.shop.invariants.no_double_charge import no_double_charge
from scenarios.shop.invariants.no_effect_without_cause import no_effect_without_cause
from scenarios.shop.invariants.paid_means_charged import paid_means_charged
from scenarios.shop.invariants.zero_dropped_orders import zero_dropped_orders

INVARIANTS = (
    zero_dropped_orders,
    no_double_charge,
    paid_means_charged,
    no_effect_without_cause,
    connected_traces,
    money_is_conserved,
    cancelled_means_undone,
    ledger_and_traces_agree,
)

__all__ = [
    "INVARIANTS",
    "cancelled_means_undone",
    "connected_traces",
    "ledger_and_traces_agree",
    "money_is_conserved",
    "no_double_charge",
    "no_effect_without_cause",
    "paid_means_charged",
    "zero_dropped_orders",
]
