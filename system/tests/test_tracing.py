"""The lean tracer: it says what the SDK says, its attributes come back from the bytes, and the SDK is not imported."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.util.types import AttributeValue

from system.telemetry.encoding import EncodableSpan, encode_span
from system.telemetry.lean_span import ATTRIBUTES_MAX, EVENTS_MAX, LINKS_MAX, LeanSpan
from system.telemetry.templates import HotSpan
from system.telemetry.tracing import LeanTracer

REMOTE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(0))


class Kept:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.started_spans: list[LeanSpan] = []
        self.ended_spans: list[LeanSpan] = []

    def started(self, span: LeanSpan) -> None:
        """Keep."""
        self.started_spans.append(span)

    def ended(self, span: LeanSpan) -> None:
        """Keep."""
        self.ended_spans.append(span)

    def hot_started(self, span: HotSpan) -> None:
        """None of these programs makes one."""
        raise AssertionError(span)

    def hot_ended(self, span: HotSpan, parts: list[bytes]) -> None:
        """As above."""
        raise AssertionError(span, parts)


Program = Callable[[Tracer], object]
PROGRAMS: list[Program] = []


def program(function: Program) -> Program:
    """A little program to be run on both tracers; what it returns must be equal too."""
    PROGRAMS.append(function)
    return function


def under(context: SpanContext) -> Context:
    """A context whose current span this is."""
    return set_span_in_context(NonRecordingSpan(context), Context())


@program
def nested(tracer: Tracer) -> object:
    """Children of the current span, of a given one, and of none; the current span comes back after each block."""
    assert get_current_span() is INVALID_SPAN
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        with tracer.start_as_current_span("inner", kind=SpanKind.CLIENT) as inner:
            assert get_current_span() is inner
            tracer.start_span("innermost", kind=SpanKind.PRODUCER).end()
        assert get_current_span() is outer
        tracer.start_span("given", set_span_in_context(inner, Context()), SpanKind.CONSUMER).end()
        tracer.start_span("alone", context=Context()).end()
        tracer.start_span("of an invalid one", context=under(SpanContext(0, 7, is_remote=True))).end()
    assert get_current_span() is INVALID_SPAN
    return outer.is_recording(), outer.get_span_context().is_remote


@program
def remote_parents(tracer: Tracer) -> None:
    """Sampled or not, random or not, with a trace state or without."""
    for flags in range(4):
        parent = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(flags))
        tracer.start_span(f"flags {flags}", context=under(parent)).end()
    state = TraceState([("vendor", "1"), ("other", "2")])
    with tracer.start_as_current_span("s", under(SpanContext(0xABC, 0xDEF, is_remote=True, trace_state=state))):
        tracer.start_span("grandchild").end()


@program
def links(tracer: Tracer) -> None:
    """At creation and later; those that say nothing are left out."""
    nothing = SpanContext(0, 0, is_remote=False)
    stateful = SpanContext(0, 0, is_remote=False, trace_state=TraceState([("a", "b")]))
    given_links = [
        Link(REMOTE, {"list": [1, 2], "a": "b"}),
        Link(nothing),
        Link(nothing, {"but": "this"}),
        Link(stateful),
    ]
    span = tracer.start_span("s", links=given_links)
    span.add_link(REMOTE)
    span.add_link(REMOTE, {"x": 1.5})
    span.add_link(nothing)
    span.end()
    crowded = tracer.start_span("crowded", links=[Link(REMOTE, {"n": n}) for n in range(LINKS_MAX + 2)])
    crowded.add_link(REMOTE, {"n": -1})
    crowded.end()


@program
def events(tracer: Tracer) -> None:
    """With attributes, with a time, and more than are kept."""
    with tracer.start_as_current_span("s") as span:
        span.add_event("bare")
        span.add_event("full", {"a": "b", "list": ["x", "y"]}, timestamp=5)
        span.record_exception(ValueError("told"), {"exception.message": "mine", "more": True}, timestamp=6)
        span.record_exception(ValueError("escaped"), escaped=True)
    with tracer.start_as_current_span("crowded") as span:
        for number in range(EVENTS_MAX + 3):
            span.add_event(str(number))


class OddError(Exception):
    """Of a module of its own."""


@program
def exceptions(tracer: Tracer) -> object:
    """In every kind of block, told or not."""
    raised = 0
    for error in (ValueError("v"), OddError("o"), KeyboardInterrupt(), asyncio.CancelledError()):
        for told in (True, False):
            for marked in (True, False):
                alone = tracer.start_span("alone", record_exception=told, set_status_on_exception=marked)
                used = tracer.start_span("used")
                for block in (
                    tracer.start_as_current_span("as current", record_exception=told, set_status_on_exception=marked),
                    alone,
                    use_span(used, end_on_exit=True, record_exception=told, set_status_on_exception=marked),
                ):
                    with contextlib.suppress(BaseException), block:
                        raised += 1
                        raise error
    with contextlib.suppress(ValueError), tracer.start_as_current_span("ended before") as span:
        span.end()
        raise ValueError("late")
    return raised, get_current_span() is INVALID_SPAN


@program
def statuses(tracer: Tracer) -> None:
    """OK is final, UNSET is nothing, ERROR has a description."""
    first: list[tuple[Status | StatusCode, str | None]] = [
        (StatusCode.OK, None),
        (StatusCode.ERROR, "why"),
        (StatusCode.UNSET, None),
        (Status(StatusCode.OK), None),
        (Status(StatusCode.ERROR, "because"), None),
        (Status(StatusCode.ERROR, "because"), "ignored"),
        (StatusCode.OK, "no description for this"),
    ]
    for at, one in enumerate(first):
        for then, other in enumerate(first):
            with tracer.start_as_current_span(f"{at}, then {then}") as span:
                span.set_status(*one)
                span.set_status(*other)
    with contextlib.suppress(ValueError), tracer.start_as_current_span("was fine") as span:
        span.set_status(StatusCode.OK)
        raise ValueError


@program
def attributes(tracer: Tracer) -> None:
    """Of each type, set in each way, overwritten, odd, and too many."""
    each: dict[str, AttributeValue] = {
        "text": "ä",
        "yes": True,
        "no": False,
        "int": -(2**63),
        "float": 0.1,
        "texts": ["a", "b"],
        "bools": (True, False),
        "ints": [1, 2],
        "floats": [0.5, 1.5],
        "mixed": [1, "a", None, [2]],
        "bytes": b"\x00\xff",
        "none": None,
        "mapping": {"a": {"b": 1}},
    }
    with tracer.start_as_current_span("at birth", attributes=each) as span:
        span.set_attributes({"text": "overwritten", "new": 1})
        span.set_attribute("yes", "overwritten")
    with tracer.start_as_current_span("at once") as span:
        span.set_attributes(each)
        span.set_attributes({})
    with tracer.start_as_current_span("one by one") as span:
        for key, value in each.items():
            span.set_attribute(key, value)
        span.set_attribute("", "no key")
        span.set_attributes({"": "no key", "key": "x"})
    odd: list[Any] = [Path("/a"), {1}, [Path("/b")], {"key": Path("/c"), 1: "d"}]
    with tracer.start_as_current_span("odd", attributes={"first": odd[0]}) as span:
        for number, value in enumerate(odd):
            span.set_attribute(f"odd {number}", value)
    many = {f"a{number}": number for number in range(ATTRIBUTES_MAX + 5)}
    with tracer.start_as_current_span("too many", attributes=many) as span:
        span.set_attribute("one more", 1)
        span.set_attribute("one more", 2)
        span.set_attributes({"two": 1, "three": 2})


@program
def changes_of_the_callers_own_values(tracer: Tracer) -> None:
    """What was given is what it was when it was given."""
    values = [1]
    mine: list[dict[str, AttributeValue]] = [{"a": 1}, {"a": 1, "list": values}]
    for given_attributes in mine:
        span = tracer.start_span("s", attributes=given_attributes)
        span.add_event("e", given_attributes)
        span.add_link(REMOTE, given_attributes)
        given_attributes["b"] = 2
        span.set_attribute("c", 3)
        values.append(2)
        span.end()
    assert [*mine[0]] == ["a", "b"]


@program
def names_and_times(tracer: Tracer) -> None:
    """A new name, and times that were given."""
    span = tracer.start_span("old", start_time=10)
    span.update_name("new ü")
    span.end(end_time=20)
    with tracer.start_as_current_span("s", start_time=30, end_on_exit=False) as kept:
        pass
    assert kept.is_recording()
    kept.end(40)


@program
def after_the_end(tracer: Tracer) -> object:
    """Nothing changes any more, and nothing breaks."""
    span = tracer.start_span("s", attributes={"a": 1})
    span.end()
    span.end(5)
    span.set_attribute("b", 2)
    span.set_attributes({"b": 2})
    span.add_event("e")
    span.add_link(REMOTE)
    span.update_name("n")
    span.set_status(StatusCode.ERROR)
    span.record_exception(ValueError())
    return span.is_recording()


@program
def decorated(tracer: Tracer) -> object:
    """A block around every call of a function, and around the whole of a coroutine."""

    @tracer.start_as_current_span("function")
    def function(number: int) -> int:
        tracer.start_span("within").end()
        return number

    @tracer.start_as_current_span("coroutine", attributes={"a": 1})
    async def coroutine(number: int) -> int:
        await asyncio.sleep(0)
        tracer.start_span("within").end()
        return number

    async def both() -> tuple[int, int]:
        return await asyncio.gather(coroutine(1), coroutine(2))

    return function(1), function(2), asyncio.run(both())


def plain(value: AnyValue) -> object:
    """An attribute's value as it was given, sequences as tuples."""
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return tuple(plain(item) for item in value.array_value.values)
        case "kvlist_value":
            return {each.key: plain(each.value) for each in value.kvlist_value.values}
        case kind:
            return type(getattr(value, kind)), getattr(value, kind)


def mapping(pairs: object) -> Mapping[str, object]:
    """Attributes by key; of a traceback only its end, because the SDK's own frames come first."""
    found = {}
    for each in pairs:  # type: ignore[attr-defined] # a repeated field
        assert isinstance(each, KeyValue)
        assert each.key not in found
        found[each.key] = plain(each.value)
        if each.key == "exception.stacktrace":
            found[each.key] = each.value.string_value.rpartition('  File "')[2]
    return found


def said(spans: list[EncodableSpan]) -> list[object]:
    """Everything these spans say once encoded, in the order of their ends: ids as names, and only times given."""
    names = {span.context.span_id: f"{number} {span.name}" for number, span in enumerate(spans)}
    traces: dict[bytes, int] = {}
    told: list[object] = []
    for span in spans:
        message = OtlpSpan.FromString(encode_span(span, {}))
        assert message.start_time_unix_nano > 0
        assert message.end_time_unix_nano > 0
        parent = int.from_bytes(message.parent_span_id, "big")
        told.append(
            (
                message.name,
                message.kind,
                names.get(parent, parent),
                message.trace_id
                if span.context.trace_id == REMOTE.trace_id
                else traces.setdefault(message.trace_id, len(traces)),
                message.trace_state,
                message.flags,
                mapping(message.attributes),
                [(each.name, mapping(each.attributes)) for each in message.events],
                [
                    (each.trace_id, each.span_id, each.trace_state, each.flags, mapping(each.attributes))
                    for each in message.links
                ],
                (message.status.code, message.status.message),
                [
                    time if time < 1_000 else "now"
                    for time in (
                        message.start_time_unix_nano,
                        message.end_time_unix_nano,
                        *(each.time_unix_nano for each in message.events),
                    )
                ],
            )
        )
    return told


@pytest.mark.parametrize("run", PROGRAMS, ids=lambda run: run.__name__)
def test_the_sdk_and_the_lean_tracer_say_the_same(run: Program) -> None:
    """The same program gives equal spans apart from ids and times."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    kept = Kept()

    expected, returned = run(provider.get_tracer("sdk")), run(LeanTracer(kept))

    assert returned == expected
    assert said([*kept.ended_spans]) == said([*exporter.get_finished_spans()])
    assert kept.ended_spans
    assert sorted(map(id, kept.started_spans)) == sorted(map(id, kept.ended_spans))


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
    ),
    lambda values: st.lists(values) | st.dictionaries(st.text(min_size=1), values),
    max_leaves=10,
)


def frozen(value: object) -> object:
    """A value as `plain` gives it back."""
    if value is None:
        return None
    if isinstance(value, list):
        return tuple(map(frozen, value))
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return type(value), value


@given(st.dictionaries(st.text(min_size=1), VALUES))
def test_every_attribute_comes_back_from_the_bytes(given_attributes: dict[str, AttributeValue]) -> None:
    """Of a span, an event and a link, by the generated classes."""
    kept = Kept()
    span = LeanTracer(kept).start_span("s", attributes=given_attributes, links=[Link(REMOTE, given_attributes)])
    span.add_event("e", given_attributes)
    span.end()

    message = OtlpSpan.FromString(encode_span(kept.ended_spans[0], {"telemetry.seq": 2**62}))

    expected = {key: frozen(value) for key, value in given_attributes.items()}
    assert mapping(message.attributes) == {**expected, "telemetry.seq": (int, 2**62)}
    assert mapping(message.events[0].attributes) == expected
    assert mapping(message.links[0].attributes) == expected


def test_what_cannot_be_an_attribute_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """As the SDK does."""
    span = LeanTracer(Kept()).start_span("s")

    span.set_attribute("key", object())  # type: ignore[arg-type] # on purpose
    span.set_attribute("", "value")

    assert ["Invalid type" in caplog.messages[0], "invalid key" in caplog.messages[1]] == [True, True]


def test_ids_are_drawn_anew_for_each_span() -> None:
    """A thousand roots, a thousand traces, none of them 0."""
    spans = [LeanTracer(Kept()).start_span("s").context for _ in range(1_000)]

    assert len({span.trace_id for span in spans}) == len({span.span_id for span in spans}) == 1_000
    assert all(span.is_valid for span in spans)
    assert max(span.trace_id for span in spans).bit_length() > 64


def test_no_service_imports_the_sdk() -> None:
    """Start time is spent on imports, and nothing needs it outside tests and benchmarks."""
    services = ", ".join(f"system.{service}.service" for service in ("orders", "payments", "provider"))
    probe = f"import sys, {services}; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )

    assert result.stdout.strip() == "[]"
