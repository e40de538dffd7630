"""I1 on evidence written as a table."""

from __future__ import annotations

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from harness.records import Outcome
from scenarios.shop.invariants.tests.rows import accepted, healed, seen, stored
from scenarios.shop.invariants.zero_dropped_orders import (
    SETTLE_WITHIN_S,
    DroppedOrder,
    LateOrder,
    zero_dropped_orders,
)

DEADLINE_MS = round(SETTLE_WITHIN_S * 1000)


def test_orders_that_were_paid_or_declined_are_not_dropped() -> None:
    """Both final states are a fate."""
    evidence = evidence_of(
        accepted("o1"),
        stored("o1"),
        seen("o1", "PAID", settled_ms=100),
        accepted("o2"),
        stored("o2", sequence=2),
        seen("o2", "DECLINED", settled_ms=120),
    )

    verdict = zero_dropped_orders.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 2


def test_an_order_that_stays_pending_is_dropped() -> None:
    """202 was a promise, and the broker has the order."""
    evidence = evidence_of(accepted("o1"), stored("o1"), seen("o1", "PENDING"))

    verdict = zero_dropped_orders.judge(evidence)

    assert verdict.state is VIOLATED
    assert verdict.findings == (DroppedOrder(order="o1", seen="PENDING", answered=True, stored=True),)


def test_a_202_that_the_broker_never_heard_of_is_a_dropped_order() -> None:
    """The customer's answer alone makes the promise."""
    evidence = evidence_of(accepted("o1"), seen("o1", "absent"))

    verdict = zero_dropped_orders.judge(evidence)

    assert verdict.findings == (DroppedOrder(order="o1", seen="absent", answered=True, stored=False),)


def test_a_stored_order_whose_customer_was_not_answered_counts_as_accepted() -> None:
    """The PubAck was lost on the way, the order was not."""
    evidence = evidence_of(accepted("o1", outcome=Outcome.UNKNOWN), stored("o1"), seen("o1", "PENDING"))

    verdict = zero_dropped_orders.judge(evidence)

    assert verdict.findings == (DroppedOrder(order="o1", seen="PENDING", answered=False, stored=True),)


def test_an_unanswered_order_that_left_nothing_is_no_promise() -> None:
    """Unknown may mean that it never happened."""
    evidence = evidence_of(
        accepted("o1", outcome=Outcome.UNKNOWN),
        seen("o1", "absent"),
        accepted("o2"),
        stored("o2"),
        seen("o2", "PAID", settled_ms=9),
    )

    verdict = zero_dropped_orders.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 1


def test_nothing_accepted_is_unknown() -> None:
    """Silence is not success."""
    assert zero_dropped_orders.judge(evidence_of()).state is UNKNOWN


def test_a_missing_final_read_makes_a_drop_unknown_not_violated() -> None:
    """The order may have settled where nobody could look."""
    evidence = evidence_of(accepted("o1"), stored("o1"), incomplete={"states": "orders did not answer"})

    verdict = zero_dropped_orders.judge(evidence)

    assert verdict.state is UNKNOWN
    assert "orders did not answer" in verdict.reason


def test_the_last_millisecond_of_the_deadline_counts_from_the_heal_and_is_in_time() -> None:
    """Boundary: exactly at the deadline is in time, one millisecond later is not."""
    in_time = evidence_of(
        accepted("o1"), stored("o1"), seen("o1", "PAID", settled_ms=5000 + DEADLINE_MS), healed(at_ms=5000)
    )
    late = evidence_of(
        accepted("o1"), stored("o1"), seen("o1", "PAID", settled_ms=5001 + DEADLINE_MS), healed(at_ms=5000)
    )

    assert zero_dropped_orders.judge(in_time).state is HOLDS
    assert zero_dropped_orders.judge(late).findings == (LateOrder(order="o1", late_ms=1),)
