"""A trace's assertions, and the tree they fail with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.records import Operation, Outcome, Span, SpanId, TraceId
from harness.traces import trace_from

MS = 1_000_000
TRACE = TraceId(f"{7:032x}")
ORDER = Operation(
    number=0,
    kind="create",
    key="o1",
    outcome=Outcome.OK,
    intended_ns=0,
    began_ns=0,
    ended_ns=9 * MS,
    trace_id=TRACE,
    span_id=SpanId(1),
    status=202,
    detail="",
    request="{}",
)
POST = Span(
    trace_id=TRACE,
    span_id=SpanId(2),
    parent_span_id=SpanId(1),
    service="orders",
    instance="a",
    seq=1,
    name="POST /orders",
    kind="server",
    began_ns=MS,
    ended_ns=8 * MS,
    status="unset",
    key="o1",
    attributes="{}",
)
PUBLISH = replace(
    POST, span_id=SpanId(3), parent_span_id=SpanId(2), began_ns=2 * MS, name="publish orders.created", kind="producer"
)
PROCESS = replace(
    POST,
    span_id=SpanId(4),
    parent_span_id=SpanId(3),
    began_ns=3 * MS,
    ended_ns=None,
    service="payments",
    name="process orders.created",
    kind="consumer",
    status="error",
)

TREE = """create o1  ok  trace 00000000000000000000000000000007
└─ orders    POST /orders  [server]  +1.0 ms, 7.0 ms
   └─ orders    publish orders.created  [producer]  +2.0 ms, 6.0 ms
      └─ payments  process orders.created  [consumer]  +3.0 ms, still open  ERROR"""


def test_a_connected_trace_contains_its_spans_in_order() -> None:
    """Spans may be given in any order; they are told by when they began."""
    trace = trace_from(ORDER, [PROCESS, POST, PUBLISH])

    trace.must_be_connected()
    trace.must_contain(("orders", "POST /orders"), ("payments", "process orders.created"))
    assert trace.services == {"orders", "payments"}
    assert trace.tree() == TREE


def test_a_missing_span_fails_with_the_tree() -> None:
    """Who reads the failure sees at once what was there instead."""
    with pytest.raises(AssertionError, match="no span provider: POST /charges") as failure:
        trace_from(ORDER, [POST, PUBLISH, PROCESS]).must_contain(
            ("orders", "POST /orders"), ("provider", "POST /charges")
        )

    assert TREE in str(failure.value)


def test_spans_in_the_wrong_order_fail_and_say_after_which() -> None:
    """The span is there, but too early."""
    with pytest.raises(AssertionError, match=r"no span orders: POST /orders after orders: publish orders\.created"):
        trace_from(ORDER, [POST, PUBLISH]).must_contain(
            ("orders", "publish orders.created"), ("orders", "POST /orders")
        )


def test_an_orphan_fails_and_hangs_at_the_end_of_the_tree() -> None:
    """Its parent was never seen."""
    trace = trace_from(ORDER, [POST, PROCESS])

    assert not trace.is_connected
    with pytest.raises(AssertionError, match=r"payments: process orders\.created") as failure:
        trace.must_be_connected()
    assert "?? orphan, parent 0000000000000003 unseen\n└─ payments  process orders.created" in str(failure.value)


def test_a_span_of_the_order_in_a_foreign_trace_is_an_orphan_of_this_one() -> None:
    """It is found by the order's id, and belongs nowhere."""
    astray = replace(PROCESS, trace_id=TraceId(f"{9:032x}"), parent_span_id=None)

    assert trace_from(ORDER, [POST, PUBLISH, astray]).orphans == (astray,)


def test_a_span_without_a_parent_does_not_descend_from_an_operation_without_a_span() -> None:
    """Two things that are not known are not the same thing."""
    trace = trace_from(replace(ORDER, span_id=None), [replace(POST, parent_span_id=None), PUBLISH])

    assert [span.name for span in trace.orphans] == ["POST /orders"]
    assert not trace.is_connected
    assert "?? orphan" in trace.tree()


def test_no_span_at_all_is_not_connected() -> None:
    """Nothing seen is not success."""
    with pytest.raises(AssertionError, match="no span of operation o1"):
        trace_from(ORDER, []).must_be_connected()


def test_spans_that_name_themselves_as_parents_are_still_drawn_to_an_end() -> None:
    """Evidence from strangers may hold nonsense; an assertion must not hang on it."""
    ouroboros = replace(PUBLISH, parent_span_id=PUBLISH.span_id)

    assert "POST /orders" in trace_from(ORDER, [POST, ouroboros, replace(PROCESS, parent_span_id=SpanId(2))]).tree()


def test_the_trace_of_another_operation_about_the_same_key_is_not_foreign() -> None:
    """An order and its cancellation are two operations and two traces; a third trace would be foreign to both."""
    other = replace(ORDER, trace_id=TraceId("ab" * 16))
    theirs = replace(POST, trace_id=TraceId("ab" * 16), span_id=SpanId(77), parent_span_id=None)
    astray = replace(POST, trace_id=TraceId("cd" * 16), span_id=SpanId(78), parent_span_id=None)

    assert trace_from(ORDER, [POST, theirs], [ORDER, other]).spans == (POST,)
    assert astray in trace_from(ORDER, [POST, theirs, astray], [ORDER, other]).spans
