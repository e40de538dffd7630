"""I2 on evidence written as a table."""

from __future__ import annotations

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from scenarios.shop.invariants.no_double_charge import DoubleCharge, no_double_charge
from scenarios.shop.invariants.tests.rows import accepted, charged, refunded


def test_one_charge_for_each_order_holds() -> None:
    """Two orders, two charges."""
    evidence = evidence_of(charged("o1"), charged("o2", seq=2))

    verdict = no_double_charge.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 2


def test_a_second_charge_for_one_order_is_a_violation() -> None:
    """Two ledger entries for one order cannot both be legitimate."""
    evidence = evidence_of(
        accepted("o1", at_ms=0),
        charged("o1", cents=1250, at_ms=10),
        charged("o1", cents=1250, at_ms=90, seq=2),
    )

    verdict = no_double_charge.judge(evidence)

    assert verdict.state is VIOLATED
    assert verdict.findings == (DoubleCharge(order="o1", charges=2, cents=2500),)


def test_a_second_charge_is_a_violation_even_when_the_ledger_is_torn() -> None:
    """A bad thing that was seen stays seen."""
    evidence = evidence_of(charged("o1"), charged("o1", at_ms=5, seq=2), incomplete={"ledger": "line 3 is torn"})

    assert no_double_charge.judge(evidence).state is VIOLATED


def test_a_torn_ledger_without_a_finding_is_unknown() -> None:
    """The missing line may be the second charge."""
    evidence = evidence_of(charged("o1"), incomplete={"ledger": "line 2 is torn"})

    verdict = no_double_charge.judge(evidence)

    assert verdict.state is UNKNOWN
    assert "line 2 is torn" in verdict.reason


def test_an_empty_ledger_is_unknown() -> None:
    """No charge was made, so nothing is shown about charging twice."""
    assert no_double_charge.judge(evidence_of(accepted("o1"))).state is UNKNOWN


def test_a_refund_beside_a_charge_is_not_a_second_charge() -> None:
    """Boundary: two ledger lines of one order, of different kinds."""
    assert no_double_charge.judge(evidence_of(charged("o1"), refunded("o1"))).state is HOLDS
