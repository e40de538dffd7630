"""I18 on evidence written as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from harness.records import Operation, Outcome
from scenarios.shop.invariants.cancelled_means_undone import NotUndone, UndoneUnasked, cancelled_means_undone
from scenarios.shop.invariants.tests.rows import accepted, seen, stored


def cancelled(order: str, *, outcome: Outcome = Outcome.OK) -> Operation:
    """Make a customer's cancellation."""
    return replace(accepted(order, outcome=outcome), kind="cancel")


@pytest.mark.parametrize("state", ["CANCELLED", "REFUNDED", "DECLINED"])
def test_a_cancelled_order_that_is_undone_holds(state: str) -> None:
    """Never charged, given back, or nothing to undo."""
    evidence = evidence_of(cancelled("o1"), seen("o1", state, settled_ms=9), seen("o2", "PAID", settled_ms=9))

    verdict = cancelled_means_undone.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 2


def test_a_cancelled_order_that_is_paid_is_a_violation() -> None:
    """The customer was told that it is cancelled, and is charged."""
    verdict = cancelled_means_undone.judge(evidence_of(cancelled("o1"), seen("o1", "PAID", settled_ms=9)))

    assert verdict.state is VIOLATED
    assert verdict.findings == (NotUndone(order="o1", seen="PAID"),)


def test_a_cancellation_that_only_the_broker_knows_of_counts() -> None:
    """The answer was lost, the message was not."""
    evidence = evidence_of(stored("o1", subject="orders.cancelled"), seen("o1", "PAID", settled_ms=9))

    assert cancelled_means_undone.judge(evidence).findings == (NotUndone(order="o1", seen="PAID"),)


def test_an_order_that_nobody_cancelled_must_not_be_undone() -> None:
    """Somebody else's cancellation hit it."""
    verdict = cancelled_means_undone.judge(evidence_of(seen("o1", "REFUNDED", settled_ms=9)))

    assert verdict.findings == (UndoneUnasked(order="o1", seen="REFUNDED"),)


def test_a_cancellation_without_an_answer_explains_both_ends() -> None:
    """Boundary: *unknown* leaves nothing, or an order undone."""
    for state in ("PAID", "CANCELLED"):
        evidence = evidence_of(cancelled("o1", outcome=Outcome.UNKNOWN), seen("o1", state, settled_ms=9))

        assert cancelled_means_undone.judge(evidence).state is HOLDS


def test_nothing_read_is_unknown() -> None:
    """Silence is not success."""
    assert cancelled_means_undone.judge(evidence_of()).state is UNKNOWN


def test_without_the_final_reads_it_is_unknown() -> None:
    """The order may have been undone unseen."""
    evidence = evidence_of(cancelled("o1"), incomplete={"states": "1 key(s) have no final read"})

    assert cancelled_means_undone.judge(evidence).state is UNKNOWN
