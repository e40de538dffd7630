"""I9 on evidence written as a table: an operation, a publish, a delivery."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.evidence.in_memory import evidence_of
from harness.invariants.connected_traces import (
    ForeignTrace,
    MessageWithoutContext,
    NoSpans,
    OrphanSpan,
    SecondRoot,
    UnlinkedDelivery,
    connected_traces,
)
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED
from harness.records import Consumer, Message, Operation, Outcome, Span, SpanId, SpanLink, TraceId

TRACE, FOREIGN = TraceId(f"{7:032x}"), TraceId(f"{8:032x}")

OPERATION = Operation(
    number=0,
    kind="create",
    key="o1",
    outcome=Outcome.OK,
    intended_ns=0,
    began_ns=0,
    ended_ns=9,
    trace_id=TRACE,
    span_id=SpanId(1),
    status=202,
    detail="",
    request="{}",
)
SERVER = Span(
    trace_id=TRACE,
    span_id=SpanId(2),
    parent_span_id=SpanId(1),
    service="orders",
    instance="a",
    seq=1,
    name="POST /orders",
    kind="server",
    began_ns=1,
    ended_ns=8,
    status="unset",
    key="o1",
    attributes="{}",
)
PUBLISH = replace(
    SERVER, span_id=SpanId(3), parent_span_id=SpanId(2), seq=2, name="publish orders.created", kind="producer"
)
PROCESS = replace(
    SERVER,
    span_id=SpanId(4),
    parent_span_id=SpanId(3),
    service="payments",
    name="process orders.created",
    kind="consumer",
)
MESSAGE = Message(
    stream="ORDERS",
    sequence=1,
    subject="orders.created",
    message_id="m1",
    stored_ns=3,
    size_bytes=9,
    key="o1",
    trace_id=TRACE,
    span_id=SpanId(3),
    headers="{}",
)


def test_a_trace_in_which_every_span_descends_from_the_operation_holds() -> None:
    """The client, the request, the publish, the delivery."""
    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, PROCESS, MESSAGE))

    assert verdict.state is HOLDS
    assert verdict.examined == 1


def test_spans_of_an_order_in_a_foreign_trace_are_a_violation() -> None:
    """Payments began a trace of its own: the context was not carried."""
    astray = replace(PROCESS, trace_id=FOREIGN, parent_span_id=None)

    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, astray, MESSAGE))

    assert verdict.state is VIOLATED
    assert verdict.findings[0] == ForeignTrace(key="o1", service="payments", span="process orders.created", spans=1)
    assert verdict.findings[1:] == (
        UnlinkedDelivery(key="o1", subject="orders.created", stream="ORDERS", sequence=1, consumer="anybody"),
    )


def test_a_second_root_is_a_violation() -> None:
    """The operation is the root; a span without a parent is another one."""
    rootless = replace(PUBLISH, parent_span_id=None)

    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, rootless, PROCESS, MESSAGE))

    assert verdict.findings == (SecondRoot(key="o1", service="orders", span="publish orders.created"),)


def test_a_message_without_trace_context_is_a_violation() -> None:
    """Whoever reads it later cannot tell where it came from."""
    bare = replace(MESSAGE, trace_id=None, span_id=None)

    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, PROCESS, bare))

    assert verdict.findings == (MessageWithoutContext(key="o1", subject="orders.created", stream="ORDERS", sequence=1),)


def test_a_span_whose_parent_is_nowhere_is_an_orphan() -> None:
    """All spans were counted, so the parent was never made."""
    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, PROCESS, MESSAGE))

    assert verdict.state is VIOLATED
    assert verdict.findings == (OrphanSpan(key="o1", service="payments", span="process orders.created"),)


def test_an_orphan_is_unknown_when_spans_were_lost() -> None:
    """The parent may be among the lost ones."""
    evidence = evidence_of(
        OPERATION, SERVER, PROCESS, MESSAGE, incomplete={"spans": "payments began 9 spans, 8 were seen"}
    )

    verdict = connected_traces.judge(evidence)

    assert verdict.state is UNKNOWN
    assert "payments began 9 spans, 8 were seen" in verdict.reason


def test_a_span_that_was_open_when_its_process_died_is_a_parent() -> None:
    """Boundary: it never ended, but it is on record."""
    died = replace(PROCESS, ended_ns=None, key=None)
    charge = replace(
        SERVER, span_id=SpanId(5), parent_span_id=SpanId(4), service="provider", name="POST /charges", instance="c"
    )

    assert connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, died, charge, MESSAGE)).state is HOLDS


def test_a_delivery_that_is_linked_instead_of_descended_is_connected() -> None:
    """Batch consumers link to the publishes they took."""
    batch = replace(PROCESS, parent_span_id=SpanId(2), key=None)
    link = SpanLink(trace_id=TRACE, span_id=SpanId(4), linked_trace_id=TRACE, linked_span_id=SpanId(3))

    assert connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, batch, link, MESSAGE)).state is HOLDS


def test_a_stored_message_that_no_span_delivered_is_a_finding() -> None:
    """Somebody took it without saying so."""
    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, MESSAGE))

    assert verdict.findings == (
        UnlinkedDelivery(key="o1", subject="orders.created", stream="ORDERS", sequence=1, consumer="anybody"),
    )


def test_an_accepted_operation_without_any_span_is_a_finding() -> None:
    """It was answered by something that does not trace."""
    verdict = connected_traces.judge(evidence_of(OPERATION))

    assert verdict.findings == (NoSpans(key="o1"),)


def test_no_accepted_operation_is_unknown() -> None:
    """There is no trace to follow."""
    assert connected_traces.judge(evidence_of(SERVER)).state is UNKNOWN


def durable(name: str, *, delivered: int = 1) -> Consumer:
    """Make a durable consumer of the stream, and how far the broker has delivered to it."""
    return Consumer(
        stream="ORDERS",
        name=name,
        pending=0,
        ack_pending=0,
        redelivered=0,
        delivered_sequence=delivered,
        ack_floor_sequence=delivered,
        config='{"filter_subject": "orders.created"}',
    )


def test_each_durable_consumer_must_tell_of_its_own_delivery() -> None:
    """The projection's span is no excuse for payments, which tells of nothing."""
    projection = replace(PROCESS, attributes='{"messaging.consumer.group.name": "order-projection"}')
    both = (durable("order-projection"), durable("payment-processor"))

    verdict = connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, projection, MESSAGE, both))

    assert verdict.findings == (
        UnlinkedDelivery(key="o1", subject="orders.created", stream="ORDERS", sequence=1, consumer="payment-processor"),
    )


@pytest.mark.parametrize(
    ("config", "is_taken"),
    [
        ('{"filter_subject": "orders.created"}', True),
        ('{"filter_subject": "orders.>"}', True),
        ('{"filter_subject": "orders.*"}', True),
        ('{"filter_subject": "*.created"}', True),
        ('{"filter_subject": ""}', True),
        ("{}", True),
        ('{"filter_subjects": ["orders.cancelled", "orders.*"]}', True),
        ('{"filter_subject": "orders.cancelled"}', False),
        ('{"filter_subject": "orders.*.late"}', False),
        ('{"filter_subject": "ordersxcreated"}', False),
        ('{"filter_subject": null, "filter_subjects": ["orders.cancelled"]}', False),
    ],
)
def test_a_consumer_owes_a_span_for_what_its_filters_let_through(config: str, *, is_taken: bool) -> None:
    """As NATS matches subjects: whoever takes a message must say so, and nobody else need."""
    projection = replace(PROCESS, attributes='{"messaging.consumer.group.name": "order-projection"}')
    other = replace(durable("other"), config=config)

    verdict = connected_traces.judge(
        evidence_of(OPERATION, SERVER, PUBLISH, projection, MESSAGE, durable("order-projection"), other)
    )

    untold = UnlinkedDelivery(key="o1", subject="orders.created", stream="ORDERS", sequence=1, consumer="other")
    assert verdict.findings == ((untold,) if is_taken else ())


def test_without_all_consumers_nobody_can_tell_whose_delivery_is_untold() -> None:
    """One that is not on record may have taken every message and told of none."""
    projection = replace(PROCESS, attributes='{"messaging.consumer.group.name": "order-projection"}')
    evidence = evidence_of(
        OPERATION,
        SERVER,
        PUBLISH,
        projection,
        MESSAGE,
        durable("order-projection"),
        incomplete={"consumers": "nobody answers for payment-processor"},
    )

    assert connected_traces.judge(evidence).state is UNKNOWN


def test_a_message_that_was_not_delivered_yet_owes_no_span() -> None:
    """It is pending: the other invariants say whether that is in order."""
    projection = replace(PROCESS, attributes='{"messaging.consumer.group.name": "order-projection"}')
    both = (durable("order-projection"), durable("payment-processor", delivered=0))

    assert connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, projection, MESSAGE, both)).state is HOLDS


def test_a_consumer_that_was_killed_in_the_middle_has_told_enough() -> None:
    """Its span was open: it has no attributes, but it hangs on the publish."""
    projection = replace(PROCESS, attributes='{"messaging.consumer.group.name": "order-projection"}')
    killed = replace(PROCESS, span_id=SpanId(9), ended_ns=None, key=None)
    both = (durable("order-projection"), durable("payment-processor"))

    assert (
        connected_traces.judge(evidence_of(OPERATION, SERVER, PUBLISH, projection, killed, MESSAGE, both)).state
        is HOLDS
    )
