"""I15 on evidence written as a table."""

from __future__ import annotations

from dataclasses import replace

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from scenarios.shop.invariants.money_is_conserved import RefundedOtherwise, money_is_conserved
from scenarios.shop.invariants.tests.rows import charged, refunded


def test_a_charge_and_its_refund_hold() -> None:
    """Taken and given back, to the cent."""
    verdict = money_is_conserved.judge(evidence_of(charged("o1"), refunded("o1"), charged("o2", seq=3)))

    assert verdict.state is HOLDS
    assert verdict.examined == 2


def test_a_second_refund_is_a_violation_even_with_a_torn_ledger() -> None:
    """Both were seen; what is missing can only make it worse."""
    evidence = evidence_of(
        charged("o1"), refunded("o1"), replace(refunded("o1", at_ms=5), seq=3), incomplete={"ledger": "torn"}
    )

    verdict = money_is_conserved.judge(evidence)

    assert verdict.state is VIOLATED
    assert verdict.findings == (RefundedOtherwise(order="o1", charged_cents=1250, refunded_cents=2500),)


def test_a_refund_of_more_than_the_charge_by_one_cent_is_a_violation() -> None:
    """Boundary."""
    verdict = money_is_conserved.judge(evidence_of(charged("o1", cents=1250), refunded("o1", cents=1251)))

    assert verdict.findings == (RefundedOtherwise(order="o1", charged_cents=1250, refunded_cents=1251),)


def test_a_refund_of_less_than_the_charge_by_one_cent_is_a_violation_unless_the_rest_may_be_missing() -> None:
    """The customer is told that it was given back."""
    less = (charged("o1", cents=1250), refunded("o1", cents=1249))

    assert money_is_conserved.judge(evidence_of(*less)).findings == (
        RefundedOtherwise(order="o1", charged_cents=1250, refunded_cents=1249),
    )
    assert money_is_conserved.judge(evidence_of(*less, incomplete={"ledger": "torn"})).state is UNKNOWN


def test_a_refund_whose_charge_may_be_in_the_torn_part_is_unknown() -> None:
    """Not seen is not the same as not there; with a whole ledger it is a violation."""
    assert money_is_conserved.judge(evidence_of(refunded("o1"), incomplete={"ledger": "torn"})).state is UNKNOWN
    assert money_is_conserved.judge(evidence_of(refunded("o1"))).state is VIOLATED


def test_an_empty_ledger_is_unknown() -> None:
    """Silence is not success."""
    assert money_is_conserved.judge(evidence_of()).state is UNKNOWN
