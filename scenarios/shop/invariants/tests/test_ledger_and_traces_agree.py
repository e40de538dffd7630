"""E1 on evidence written as a table."""

from __future__ import annotations

from dataclasses import replace

from harness.evidence.in_memory import evidence_of
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from harness.records import Span, SpanId
from scenarios.shop.invariants.ledger_and_traces_agree import (
    ChargeWithoutLedger,
    ChargeWithoutSpan,
    ledger_and_traces_agree,
)
from scenarios.shop.invariants.tests.rows import TRACE, accepted, charged

CAPTURED = Span(
    trace_id=TRACE,
    span_id=SpanId(9),
    parent_span_id=SpanId(8),
    service="provider",
    instance="p",
    seq=1,
    name="POST /charges",
    kind="server",
    began_ns=1,
    ended_ns=2,
    status="unset",
    key="o1",
    attributes='{"charge.outcome": "captured"}',
)


def test_a_charge_that_is_booked_and_told_holds() -> None:
    """Both channels know it; a replayed answer adds nothing."""
    replayed = replace(CAPTURED, span_id=SpanId(10), attributes='{"charge.outcome": "replayed"}')

    verdict = ledger_and_traces_agree.judge(evidence_of(accepted("o1"), CAPTURED, replayed, charged("o1")))

    assert verdict.state is HOLDS
    assert verdict.examined == 1


def test_a_captured_span_without_a_ledger_line_is_a_violation() -> None:
    """The provider said it took the money and did not write it down."""
    verdict = ledger_and_traces_agree.judge(evidence_of(accepted("o1"), CAPTURED))

    assert verdict.state is VIOLATED
    assert verdict.findings == (ChargeWithoutLedger(order="o1", told=1, booked=0),)


def test_a_ledger_line_without_a_span_is_a_violation() -> None:
    """Money moved behind the traces' back."""
    verdict = ledger_and_traces_agree.judge(evidence_of(accepted("o1"), charged("o1")))

    assert verdict.findings == (ChargeWithoutSpan(order="o1", told=0, booked=1),)


def test_a_disagreement_is_unknown_while_either_channel_is_incomplete() -> None:
    """What is missing may be just what would reconcile them."""
    for channel in ("ledger", "spans"):
        evidence = evidence_of(accepted("o1"), charged("o1"), incomplete={channel: "torn"})
        assert ledger_and_traces_agree.judge(evidence).state is UNKNOWN


def test_no_charge_at_all_is_unknown() -> None:
    """Two silent channels agree on nothing."""
    assert ledger_and_traces_agree.judge(evidence_of(accepted("o1"))).state is UNKNOWN


def test_a_span_that_was_open_when_the_provider_died_tells_by_its_trace() -> None:
    """Boundary: it has neither outcome nor order, and the money had moved."""
    died = replace(CAPTURED, ended_ns=None, key=None, attributes="{}")

    assert ledger_and_traces_agree.judge(evidence_of(accepted("o1"), died, charged("o1"))).state is HOLDS


def test_two_charges_against_one_captured_span_disagree() -> None:
    """The second one was taken behind the traces' back."""
    evidence = evidence_of(accepted("o1"), CAPTURED, charged("o1"), charged("o1", at_ms=5, seq=2))

    assert ledger_and_traces_agree.judge(evidence).findings == (ChargeWithoutSpan(order="o1", told=1, booked=2),)
