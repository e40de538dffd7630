"""I4 on evidence written as a table."""

from __future__ import annotations

from dataclasses import replace

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from harness.records import Operation, Outcome
from scenarios.shop.invariants.no_effect_without_cause import (
    ChargeWithoutOrder,
    RefusedAndCharged,
    WrongAmount,
    WrongCurrency,
    no_effect_without_cause,
)
from scenarios.shop.invariants.tests.rows import accepted, charged, stored


def asked(order: str, amount: str) -> Operation:
    """Make an order over an amount, as the customer spelled it."""
    return replace(accepted(order), request=f'{{"customer_id": "c", "total_amount": {amount}}}')


def test_a_charge_over_what_was_asked_holds() -> None:
    """Also when the order was placed by somebody whom only the broker knows."""
    evidence = evidence_of(asked("o1", "12.5"), charged("o1", cents=1250), stored("o2"), charged("o2", seq=2))

    verdict = no_effect_without_cause.judge(evidence)

    assert verdict.state is HOLDS
    assert verdict.examined == 2


def test_a_charge_for_an_order_that_nobody_placed_is_a_violation() -> None:
    """Money moved for nothing."""
    verdict = no_effect_without_cause.judge(evidence_of(asked("o1", "12.5"), charged("o9", cents=700)))

    assert verdict.state is VIOLATED
    assert verdict.findings == (ChargeWithoutOrder(order="o9", cents=700),)


def test_a_charge_for_an_order_that_was_refused_is_a_violation_though_the_broker_has_it() -> None:
    """A customer who was told no places the order elsewhere."""
    refused = replace(asked("o1", "12.5"), outcome=Outcome.FAILED)

    verdict = no_effect_without_cause.judge(evidence_of(refused, stored("o1"), charged("o1", cents=1250)))

    assert verdict.findings == (RefusedAndCharged(order="o1", cents=1250),)


def test_a_refusal_of_an_order_that_was_accepted_as_well_counts_for_nothing() -> None:
    """The key was used again, for another amount: whichever comes first, the order is the one that was accepted."""
    first = asked("o1", "12.5")
    again = replace(asked("o1", "99"), number=1, outcome=Outcome.FAILED)

    for operations in ((first, again), (again, first)):
        held = no_effect_without_cause.judge(evidence_of(operations, charged("o1", cents=1250)))
        assert held.state is HOLDS
        wrong = no_effect_without_cause.judge(evidence_of(operations, charged("o1", cents=9900)))
        assert wrong.findings == (WrongAmount(order="o1", cents=9900, asked_cents=1250),)


def test_another_amount_than_asked_is_a_violation_whatever_is_missing() -> None:
    """Both numbers were seen."""
    evidence = evidence_of(asked("o1", "12.5"), charged("o1", cents=1251), incomplete={"messages": "gone"})

    assert no_effect_without_cause.judge(evidence).findings == (WrongAmount(order="o1", cents=1251, asked_cents=1250),)


def test_a_charge_whose_order_may_be_in_the_missing_history_is_unknown() -> None:
    """The history has a torn line."""
    evidence = evidence_of(charged("o1"), incomplete={"operations": "1 line is torn"})

    assert no_effect_without_cause.judge(evidence).state is UNKNOWN


def test_no_charge_is_unknown() -> None:
    """Nothing was examined."""
    assert no_effect_without_cause.judge(evidence_of(asked("o1", "12.5"))).state is UNKNOWN


def test_an_amount_that_binary_floats_cannot_hold_is_still_exact_to_the_cent() -> None:
    """Boundary: 0.29 * 100 is 28.999999999999996."""
    assert no_effect_without_cause.judge(evidence_of(asked("o1", "0.29"), charged("o1", cents=29))).state is HOLDS


def test_another_currency_than_asked_is_a_violation_whatever_is_missing() -> None:
    """Twelve and a half of what? Who did not say means euros."""
    dollars = replace(charged("o1"), currency="USD")
    evidence = evidence_of(asked("o1", "12.5"), dollars, incomplete={"operations": "torn"})

    findings = no_effect_without_cause.judge(evidence).findings
    assert findings == (WrongCurrency(order="o1", currency="USD", asked="EUR"),)
    held = evidence_of(replace(asked("o1", "12.5"), request='{"total_amount": 12.5, "currency": "USD"}'), dollars)
    assert no_effect_without_cause.judge(held).state is HOLDS
