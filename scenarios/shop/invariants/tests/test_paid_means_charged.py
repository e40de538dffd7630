"""I3 on evidence written as a table."""

from __future__ import annotations

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from scenarios.shop.invariants.paid_means_charged import (
    ChargedButNotPaid,
    DeclinedUnasked,
    PaidWithoutCharge,
    RefundNotMade,
    ShownOtherwise,
    paid_means_charged,
)
from scenarios.shop.invariants.tests.rows import charged, declined, refunded, seen


def test_paid_and_charged_or_declined_and_not_charged_holds() -> None:
    """Both stories are consistent."""
    evidence = evidence_of(
        seen("o1", "PAID", settled_ms=9), charged("o1"), seen("o2", "DECLINED", settled_ms=9), declined("o2", seq=2)
    )

    verdict = paid_means_charged.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 2


def test_an_order_that_is_paid_without_a_charge_is_a_violation() -> None:
    """A breaker that falls back to approved, an API that lies."""
    verdict = paid_means_charged.judge(evidence_of(seen("o1", "PAID", settled_ms=9)))

    assert verdict.state is VIOLATED
    assert verdict.findings == (PaidWithoutCharge(order="o1"),)


def test_a_declined_order_that_was_charged_is_a_violation_even_with_a_torn_ledger() -> None:
    """The customer's money is gone, and both facts were seen."""
    evidence = evidence_of(seen("o1", "DECLINED", settled_ms=9), charged("o1"), incomplete={"ledger": "torn"})

    assert paid_means_charged.judge(evidence).findings == (ChargedButNotPaid(order="o1", seen="DECLINED"),)


def test_a_paid_order_whose_charge_may_be_in_the_torn_part_is_unknown() -> None:
    """Not seen is not the same as not there."""
    evidence = evidence_of(seen("o1", "PAID", settled_ms=9), incomplete={"ledger": "line 1 is torn"})

    assert paid_means_charged.judge(evidence).state is UNKNOWN


def test_no_final_order_is_unknown() -> None:
    """There is nothing to compare."""
    assert paid_means_charged.judge(evidence_of(charged("o1"))).state is UNKNOWN


def test_an_order_that_is_not_final_yet_is_left_to_the_other_invariant() -> None:
    """Boundary: charged and still PENDING is a dropped order, not a contradiction."""
    evidence = evidence_of(seen("o1", "PENDING"), charged("o1"), seen("o2", "PAID", settled_ms=9), charged("o2", seq=2))

    verdict = paid_means_charged.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 1


def test_a_cancelled_order_holds_when_no_charge_stands() -> None:
    """Refunded after a charge, or cancelled before one."""
    evidence = evidence_of(
        seen("o1", "REFUNDED", settled_ms=9), charged("o1"), refunded("o1"), seen("o2", "CANCELLED", settled_ms=9)
    )

    assert paid_means_charged.judge(evidence).state is HOLDS


def test_a_cancelled_order_whose_charge_stands_is_a_violation() -> None:
    """The customer was told that nothing will be taken."""
    evidence = evidence_of(seen("o1", "CANCELLED", settled_ms=9), charged("o1"))

    assert paid_means_charged.judge(evidence).findings == (ChargedButNotPaid(order="o1", seen="CANCELLED"),)


def test_a_refunded_order_without_a_refund_is_a_violation() -> None:
    """The customer waits for money that nobody sent."""
    verdict = paid_means_charged.judge(evidence_of(seen("o1", "REFUNDED", settled_ms=9), charged("o1")))

    assert verdict.state is VIOLATED
    assert RefundNotMade(order="o1") in verdict.findings


def test_a_paid_order_whose_charge_was_given_back_is_a_violation() -> None:
    """It was undone and does not say so."""
    evidence = evidence_of(seen("o1", "PAID", settled_ms=9), charged("o1"), refunded("o1"))

    assert paid_means_charged.judge(evidence).findings == (PaidWithoutCharge(order="o1"),)


def test_a_declined_order_whose_card_was_never_asked_is_a_violation() -> None:
    """A breaker that falls back to declined loses a sale, and says it was the customer's card."""
    rows = (seen("o1", "DECLINED", settled_ms=9), seen("o2", "DECLINED", settled_ms=9), declined("o2"))

    assert paid_means_charged.judge(evidence_of(*rows)).findings == (DeclinedUnasked(order="o1"),)
    torn = paid_means_charged.judge(evidence_of(*rows, incomplete={"ledger": "line 2 is torn"}))
    assert torn.state is UNKNOWN


def test_another_amount_shown_than_was_taken_is_a_violation_whatever_is_missing() -> None:
    """The customer believes what the API says."""
    rows = (seen("o1", "PAID", settled_ms=9), charged("o1", cents=125))

    for incomplete in ({}, {"ledger": "torn"}):
        verdict = paid_means_charged.judge(evidence_of(*rows, incomplete=incomplete))
        assert verdict.findings == (ShownOtherwise(order="o1", shown_cents=1250, cents=125),)
