"""Spans of templates say what spans of the API would say, and stand in the same tree."""

from __future__ import annotations

import asyncio
import contextvars
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from system import telemetry
from system.telemetry import ROOT, Parent, SpanTemplate, current, parent_in
from system.telemetry.templates import EVENTS_MAX, NOTES_MAX
from system.telemetry.tracing import span_context_of
from system.tests.spans import Spans
from system.tests.test_telemetry import attributes_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
VARYING = ("messaging.message.id", "order.id", "messaging.nats.delivery_count")
PROCESS = SpanTemplate(
    "process orders.created",
    SpanKind.CONSUMER,
    {"messaging.system": "nats", "messaging.batch.message_count": 3},
    VARYING,
    links_parent=True,
)


@given(
    text=st.none() | st.text(max_size=200),
    number=st.none() | st.integers(min_value=-(2**63), max_value=2**63 - 1),
    state=st.sampled_from(["", "vendor=1,other=2"]),
)
def test_a_span_of_a_template_says_what_one_of_the_api_would_say(
    text: str | None, number: int | None, state: str
) -> None:
    """Name, kind, parent, links, attributes, status, flags: all but ids and times."""
    headers = {"traceparent": TRACEPARENT, **({"tracestate": state} if state else {})}
    hot, cold = Spans(), Spans()

    span = hot.tracer.begin(PROCESS, parent_in(headers))
    span.note("extra", 2.5)
    span.fail("it broke", text, "o1", number)
    remote = SpanContext(
        int(TRACE, 16),
        int(SPAN, 16),
        is_remote=True,
        trace_flags=TraceFlags(1),
        trace_state=TraceState.from_header([state]),
    )
    with cold.tracer.start_as_current_span(
        "process orders.created",
        context=set_span_in_context(NonRecordingSpan(remote)),
        kind=SpanKind.CONSUMER,
        links=[Link(SpanContext(remote.trace_id, remote.span_id, is_remote=True, trace_flags=TraceFlags(1)))],
        attributes={"messaging.system": "nats", "messaging.batch.message_count": 3},
    ) as other:
        if text is not None:
            other.set_attribute("messaging.message.id", text)
        other.set_attribute("order.id", "o1")
        if number is not None:
            other.set_attribute("messaging.nats.delivery_count", number)
        other.set_attribute("extra", 2.5)
        other.set_status(Status(StatusCode.ERROR, "it broke"))

    (ours,), (theirs,) = hot.ended, cold.ended
    assert attributes_of(ours) == attributes_of(theirs)
    for each in (ours, theirs):
        del each.attributes[:]
        each.span_id = b""
        each.start_time_unix_nano = each.end_time_unix_nano = 0
    assert ours == theirs


@given(
    values=st.lists(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text(max_size=300),
        max_size=3,
    )
)
def test_every_varying_value_comes_back_as_what_it_was(values: list[str | float | None]) -> None:
    """By type as well: True is not 1. What is None, or not given at all, is left out."""
    spans = Spans()

    spans.tracer.begin(PROCESS, ROOT).end(*values)

    (span,) = spans.ended
    found = {each.key: each.value for each in span.attributes}
    for name, value in itertools.zip_longest(VARYING, values):
        if value is None:
            assert name not in found
        else:
            field = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(value)]
            assert found[name].WhichOneof("value") == field
            assert getattr(found[name], field) == value
    assert len(found) == 2 + sum(value is not None for value in values)


def test_what_is_noted_counts_unless_the_end_says_otherwise() -> None:
    """One word for each key: of the template, noted, or given at the end, and the last one counts."""
    spans = Spans()
    span = spans.tracer.begin(PROCESS, ROOT)

    span.note("messaging.system", "other")
    span.note("messaging.message.id", "noted")
    span.note("order.id", "noted")
    span.note("messaging.nats.delivery_count", 7)
    span.note("more", [1, 2])
    span.note("more", "last")
    span.end("given", None)

    (ended,) = spans.ended
    assert len(ended.attributes) == 6
    assert attributes_of(ended) == {
        "messaging.system": "other",
        "messaging.batch.message_count": 3,
        "messaging.message.id": "given",
        "order.id": "noted",
        "messaging.nats.delivery_count": 7,
        "more": "last",
    }


def test_what_comes_after_the_end_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One span is one frame in the spool; whoever ends it again is told in the log."""
    spans = Spans()
    span = spans.tracer.begin(PROCESS, ROOT)

    span.end("m1")
    span.note("late", 1)
    span.event("late")
    span.end("m2")
    span.fail("late")

    (ended,) = spans.ended
    assert attributes_of(ended)["messaging.message.id"] == "m1"
    assert (len(ended.events), ended.status.code) == (0, 0)
    assert len(caplog.records) == 2


def test_events_and_failures_are_told() -> None:
    """An event has its name, time and attributes; a failure its description, if there is one."""
    spans = Spans()
    span = spans.tracer.begin(PROCESS, ROOT)
    span.event("breaker opened", {"failures": 6})
    span.fail("gave up")
    spans.tracer.begin(PROCESS, ROOT).fail("")

    told, silent = spans.ended
    (event,) = told.events
    assert (event.name, event.attributes[0].value.int_value) == ("breaker opened", 6)
    assert told.start_time_unix_nano <= event.time_unix_nano <= told.end_time_unix_nano
    assert (told.status.code, told.status.message) == (2, "gave up")
    assert (silent.status.code, silent.status.message) == (2, "")


def test_what_a_span_takes_is_bounded_and_its_failure_is_told_in_any_case() -> None:
    """The first events and notes stay; all links do, for they are as many as the batch."""
    spans = Spans()
    span = spans.tracer.begin(PROCESS, ROOT, links=[Parent(b"a" * 16, b"b" * 8)] * 300)

    for number in range(300):
        span.event(str(number))
        span.note(str(number), number)
    span.fail("gave up")

    (ended,) = spans.ended
    assert (len(ended.links), ended.status.message) == (300, "gave up")
    assert 100 < len(ended.events) <= EVENTS_MAX
    assert len(ended.attributes) == 2 + NOTES_MAX


async def test_an_activated_span_is_the_current_one_of_its_task_and_of_no_other() -> None:
    """Tasks made from here on inherit it, and what they activate does not come back."""
    spans = Spans()
    outer = spans.tracer.begin(PROCESS, ROOT)

    async def handle() -> bool:
        inherited = current() is outer
        spans.tracer.begin(PROCESS).activate()
        return inherited

    async def activate_and_handle() -> bool:
        outer.activate()
        return await asyncio.create_task(handle()) and current() is outer

    assert await asyncio.create_task(activate_and_handle())
    assert current() is None


def test_a_span_of_the_api_gives_back_what_was_current_before() -> None:
    """Whatever was activated within the block."""
    spans = Spans()

    def run() -> None:
        hot = spans.tracer.begin(PROCESS, ROOT)
        hot.activate()
        with spans.tracer.start_as_current_span("cold") as cold:
            assert current() is cold
            spans.tracer.begin(PROCESS).activate()
        assert current() is hot
        headers: dict[str, str] = {}
        telemetry.inject(headers)
        assert headers == {"traceparent": hot.traceparent}

    contextvars.copy_context().run(run)


def test_either_kind_of_span_can_be_the_others_parent() -> None:
    """A template's span under one of the API, and one of the API under that."""
    spans = Spans()

    with spans.tracer.start_as_current_span("outer"):
        hot = spans.tracer.begin(PROCESS)
        hot.activate()
        with spans.tracer.start_as_current_span("inner"):
            pass
        hot.end()

    inner, process, outer = spans.ended
    assert (inner.parent_span_id, process.parent_span_id, outer.parent_span_id) == (
        process.span_id,
        outer.span_id,
        b"",
    )
    assert inner.trace_id == process.trace_id == outer.trace_id


def test_a_root_is_a_root_even_within_a_span() -> None:
    """What belongs to a whole batch stands in nobody's trace, and links to all of them."""
    spans = Spans()
    first, second = Parent(b"a" * 16, b"b" * 8), Parent(b"c" * 16, b"d" * 8)

    with spans.tracer.start_as_current_span("outer"):
        spans.tracer.begin(PROCESS, ROOT, links=[first, second]).end()

    batch, outer = spans.ended
    assert batch.parent_span_id == b""
    assert batch.trace_id != outer.trace_id
    assert [(link.trace_id, link.span_id) for link in batch.links] == [(b"a" * 16, b"b" * 8), (b"c" * 16, b"d" * 8)]


def test_the_current_span_travels_in_headers_whichever_kind_it_is() -> None:
    """`inject` and `traceparent` say the same, and the trace state goes along."""
    spans = Spans()
    hot = spans.tracer.begin(PROCESS, parent_in({"TraceParent": TRACEPARENT, "TraceState": "vendor=1"}))
    before = current()
    hot.activate()
    headers: dict[str, str] = {}
    telemetry.inject(headers)
    telemetry.about_order("o7")
    hot.end()
    telemetry.context.set_current(before)

    assert headers == {"traceparent": hot.traceparent, "tracestate": "vendor=1"}
    assert hot.traceparent.startswith(f"00-{TRACE}-")
    assert attributes_of(spans.ended[0])["order.id"] == "o7"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
    ],
)
def test_a_header_that_is_no_trace_context_is_no_parent(header: str) -> None:
    """As W3C Trace Context has it."""
    assert parent_in({"traceparent": header}) is None


@pytest.mark.parametrize("header", [TRACEPARENT, f"00-{TRACE}-{SPAN}-00", f"01-{TRACE}-{SPAN}-01-more"])
def test_a_header_of_this_or_a_later_version_is_a_parent(header: str) -> None:
    """An unsampled caller is no reason to lose an order here."""
    parent = parent_in({"TRACEPARENT": header})

    assert parent is not None
    assert (parent.trace_id.hex(), parent.span_id.hex(), parent.is_remote) == (TRACE, SPAN, True)


def mostly(usual: str, *others: str) -> st.SearchStrategy[str]:
    """One part of a header, right more often than not."""
    return st.sampled_from([usual] * 2 * len(others) + [*others])


@settings(max_examples=500)
@given(
    st.fixed_dictionaries(
        {
            "traceparent": st.tuples(
                mostly("00", "01", "fe", "ff", "0", "0g", "0A"),
                mostly(TRACE, "0" * 32, TRACE.upper(), TRACE[1:], TRACE + "0"),
                mostly(SPAN, "0" * 16, SPAN[1:], SPAN + "0", SPAN[1:] + " "),
                mostly("01", "00", "02", "03", "ff", "4d", "4e", "1", "0g", "001"),
                mostly("", "-", "-more", "more"),
            ).map(lambda parts: "-".join(parts[:4]) + parts[4])
        },
        optional={"tracestate": st.sampled_from(["a=1", "a=1,b=2", "", "rubbish", "a=1,rubbish", "x" * 600])},
    ),
)
def test_a_parent_is_read_as_the_api_would_read_it(headers: dict[str, str]) -> None:
    """The same headers are a parent or none for both, and say the same; but for us every caller's trace is sampled."""
    api = get_current_span(telemetry.extract(headers)).get_span_context()

    parent = parent_in(headers)

    assert (parent is not None) == api.is_valid
    if parent is not None:
        ours = span_context_of(parent)
        assert (ours.trace_id, ours.span_id, ours.is_remote) == (api.trace_id, api.span_id, True)
        assert ours.trace_state == api.trace_state
        assert ours.trace_flags == (api.trace_flags & TraceFlags.RANDOM_TRACE_ID) | TraceFlags.SAMPLED
