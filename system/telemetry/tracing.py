"""A lean tracer behind the OpenTelemetry API: spans that are a few fields and a dict, and a recorder that is told.

With the SDK behind the API the spans of an order cost more CPU than everything else together (figures:
`python -m system.benchmarks.spans`). What it pays for is left out here: locks, samplers, processors, a resource on
every span, and a generator around every block.

Promises: what a program sees and what its spans say is what the SDK would do and say, ids and times apart; a test
holds both against each other. Every span is recorded: whether a caller sampled its own trace is no reason to lose an
order here. Does not: read `OTEL_*` limits from the environment, or count what a limit dropped. Belongs to the event
loop's thread.
"""

from __future__ import annotations

import functools
import inspect
import logging
import random
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import attach, detach
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from system.telemetry.context import ROOT, AnySpan, Parent, current, set_current
from system.telemetry.encoding import ids
from system.telemetry.templates import HotRecorder, HotSpan, SpanTemplate

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.util.types import Attributes, AttributeValue

log = logging.getLogger(__name__)

# The SDK's defaults; when one is reached, the oldest goes.
ATTRIBUTES_MAX = 128
EVENTS_MAX = 128
LINKS_MAX = 128

_P = ParamSpec("_P")
_R = TypeVar("_R")

_RANDOM = 0x02  # of W3C trace context level 2: the trace id was drawn at random
_SAMPLED_FLAGS = TraceFlags(TraceFlags.SAMPLED)
_ROOT_FLAGS = TraceFlags(TraceFlags.SAMPLED | _RANDOM)
_NO_STATUS = Status()
_TEXT = frozenset((str,))
_PLAIN = frozenset((str, bool, int, float))


class Recorder(HotRecorder, Protocol):
    """Whoever is told of every span, once when it starts and once when it has ended."""

    def started(self, span: LeanSpan) -> None:
        """The span has its context, and may be given `seq` and `slot`."""

    def ended(self, span: LeanSpan) -> None:
        """The span has everything and changes no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened during a span. timestamp: Unix time in ns."""

    name: str
    attributes: Mapping[str, AttributeValue]
    timestamp: int


class LeanSpan(Span):
    """One span. To read, it has the names of the SDK's ReadableSpan; to change it, use the API.

    parent: None for a root. start_time, end_time: Unix time in ns; end_time is None while the span is open. seq, slot:
    the recorder's notes, 0 unless it sets them.
    """

    __slots__ = (
        "_record_exception",
        "_recorder",
        "_set_status_on_exception",
        "attributes",
        "context",
        "end_time",
        "events",
        "kind",
        "links",
        "name",
        "parent",
        "seq",
        "slot",
        "start_time",
        "status",
    )

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        start_time: int,
        record_exception: bool,  # noqa: FBT001 - as the API has it
        set_status_on_exception: bool,  # noqa: FBT001 - as the API has it
    ) -> None:
        self._recorder = recorder
        self._record_exception = record_exception
        self._set_status_on_exception = set_status_on_exception
        self.name = name
        self.context = context
        self.parent = parent
        self.kind = kind
        self.start_time = start_time
        self.end_time: int | None = None
        self.attributes: dict[str, AttributeValue] = {}
        self.events: Sequence[Event] = ()
        self.links: Sequence[Link] = ()
        self.status = _NO_STATUS
        self.seq = 0
        self.slot = 0

    def get_span_context(self) -> SpanContext:
        """What identifies the span."""
        return self.context

    def as_parent(self) -> Parent:
        """The same, for spans of templates."""
        context = self.context
        state = context.trace_state.to_header() if context.trace_state else ""
        return Parent(*ids(context), state, context.is_remote, bool(context.trace_flags & _RANDOM))

    def note(self, key: str, value: AttributeValue) -> None:
        """Set one attribute, as spans of templates call it."""
        self.set_attribute(key, value)

    def is_recording(self) -> bool:
        """Whether the span is still open."""
        return self.end_time is None

    def end(self, end_time: int | None = None) -> None:
        """End the span, once; a second call only logs."""
        if self._is_changeable("end"):
            self.end_time = time_ns() if end_time is None else end_time
            self._recorder.ended(self)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute; the last word counts."""
        if not self._is_changeable("set_attribute"):
            return
        attributes = self.attributes
        if type(value) in _PLAIN and key and type(key) is str and len(attributes) < ATTRIBUTES_MAX:
            attributes[key] = value
        else:
            bounded = BoundedAttributes(ATTRIBUTES_MAX, attributes, immutable=False)
            bounded[key] = value
            self.attributes = dict(bounded)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set many attributes; the last word counts."""
        if not self._is_changeable("set_attributes"):
            return
        if len(self.attributes) + len(attributes) <= ATTRIBUTES_MAX and _are_plain(attributes):
            self.attributes.update(attributes)
        else:
            self.attributes = _cleaned({**self.attributes, **attributes})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Note that something happened, now or at the timestamp."""
        if self._is_changeable("add_event"):
            event = Event(
                name=name,
                attributes=_cleaned(attributes),
                timestamp=time_ns() if timestamp is None else timestamp,
            )
            self.events = (*self.events, event)[-EVENTS_MAX:]

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Link to another span; a link that says nothing is left out."""
        if self._is_changeable("add_link"):
            self.links = (*self.links, *_cleaned_links((Link(context, attributes),)))[-LINKS_MAX:]

    def update_name(self, name: str) -> None:
        """Rename the span; where it was noted as open it keeps its old name."""
        if self._is_changeable("update_name"):
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status: OK is final, UNSET is ignored."""
        if not self._is_changeable("set_status") or self.status.status_code is StatusCode.OK:
            return
        if isinstance(status, StatusCode):
            status = Status(status, description)
        elif description is not None:
            log.warning("the description %r is ignored: it belongs into the Status", description)
        if status.status_code is not StatusCode.UNSET:
            self.status = status

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - as the API has it
    ) -> None:
        """Add an event that tells of an exception, with its traceback."""
        kind = type(exception)
        module = "" if kind.__module__ in ("", "builtins") else f"{kind.__module__}."
        told: dict[str, AttributeValue] = {
            "exception.type": f"{module}{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if exc_val is not None and self.is_recording():
            if self._record_exception:
                self.record_exception(exc_val, escaped=True)
            if self._set_status_on_exception:
                self.set_status(_failed_with(exc_val))
        self.end()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, context={self.context!r})"

    def _is_changeable(self, what: str) -> bool:
        if self.end_time is None:
            return True
        log.warning("%s came after the end of the span %r and is ignored", what, self.name)
        return False


class LeanTracer(Tracer):
    """Makes spans and tells its recorder of them."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def begin(
        self, template: SpanTemplate, parent: Parent | HotSpan | None = None, *, links: Sequence[Parent] = ()
    ) -> HotSpan:
        """A span of a template, which somebody must end.

        parent: what it stands under; None is the current span if there is one, `ROOT` is nothing in any case.
        """
        if parent is None:
            parent = _under(current())
        return HotSpan(self._recorder, template, parent, links)

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002 - as the API has it
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002 - as the API has it
    ) -> LeanSpan:
        """A span under the current one, or under the one in `context`; somebody must end it."""
        parent: SpanContext | None = get_current_span(context).get_span_context()
        if context is None and (innermost := current()) is not None:
            parent = span_context_of(innermost.as_parent())
        if parent is not None and parent.is_valid:
            flags = _ROOT_FLAGS if parent.trace_flags & _RANDOM else _SAMPLED_FLAGS
            its_context = SpanContext(parent.trace_id, _random_id(64), False, flags, parent.trace_state)  # noqa: FBT003 - positions cost less
        else:
            parent = None
            its_context = SpanContext(_random_id(128), _random_id(64), False, _ROOT_FLAGS)  # noqa: FBT003 - as above
        span = LeanSpan(
            self._recorder,
            name,
            its_context,
            parent,
            kind,
            time_ns() if start_time is None else start_time,
            record_exception,
            set_status_on_exception,
        )
        if attributes:
            span.attributes = _cleaned(attributes)
        if links:
            span.links = _cleaned_links(links)
        self._recorder.started(span)
        return span

    def start_as_current_span(  # type: ignore[override]  # noqa: PLR0917 - nine, as the API has it; and the API names a private generator class of its own
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002 - as the API has it
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002 - as the API has it
        end_on_exit: bool = True,  # noqa: FBT001, FBT002 - as the API has it
    ) -> CurrentSpan:
        """A block, or a function, within a span that is the current one there."""
        arguments = (name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception)
        return CurrentSpan(self, arguments, end_on_exit=end_on_exit)


class CurrentSpan:
    """A span for the length of a block: it starts on entry, and by default ends on exit, after any exception is told.

    Also a decorator, of plain functions and of coroutine functions.
    """

    __slots__ = ("_arguments", "_before", "_end_on_exit", "_span", "_token", "_tracer")

    _span: LeanSpan
    _token: Token[Context]
    _before: AnySpan | None

    def __init__(self, tracer: LeanTracer, arguments: tuple[Any, ...], *, end_on_exit: bool) -> None:
        self._tracer = tracer
        self._arguments = arguments
        self._end_on_exit = end_on_exit

    def __enter__(self) -> LeanSpan:
        self._span = span = self._tracer.start_span(*self._arguments)
        self._token = attach(set_span_in_context(span))
        self._before = current()
        set_current(span)
        return span

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        set_current(self._before)
        detach(self._token)
        try:
            # Not BaseException: being cancelled is no error.
            if isinstance(exc_val, Exception) and self._span.is_recording():
                *_, record_exception, set_status_on_exception = self._arguments
                if record_exception:
                    self._span.record_exception(exc_val)
                if set_status_on_exception:
                    self._span.set_status(_failed_with(exc_val))
        finally:
            if self._end_on_exit:
                self._span.end()

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """The function, within a span of its own at each call."""

        def again() -> CurrentSpan:
            return CurrentSpan(self._tracer, self._arguments, end_on_exit=self._end_on_exit)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: _P.args, **kwargs: _P.kwargs) -> object:
                with again():
                    return await cast("Awaitable[object]", function(*args, **kwargs))

            return cast("Callable[_P, _R]", awaited)

        @functools.wraps(function)
        def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with again():
                return function(*args, **kwargs)

        return called


def _under(span: AnySpan | None) -> Parent | HotSpan:
    if type(span) is HotSpan:
        return span
    return ROOT if span is None else span.as_parent()


def span_context_of(parent: Parent) -> SpanContext:
    """The same, as the API has it."""
    return SpanContext(
        int.from_bytes(parent.trace_id, "big"),
        int.from_bytes(parent.span_id, "big"),
        parent.is_remote,
        _ROOT_FLAGS if parent.is_random else _SAMPLED_FLAGS,
        TraceState.from_header([parent.trace_state]) if parent.trace_state else TraceState(),
    )


def _random_id(bits: int) -> int:
    # 0 is no id.
    while not (number := random.getrandbits(bits)):
        pass
    return number


def _failed_with(error: BaseException) -> Status:
    return Status(StatusCode.ERROR, f"{type(error).__name__}: {error}")


def _are_plain(attributes: Mapping[str, AttributeValue]) -> bool:
    return (
        _PLAIN.issuperset(map(type, attributes.values()))
        and _TEXT.issuperset(map(type, attributes))
        and "" not in attributes
    )


def _cleaned(attributes: Attributes) -> dict[str, AttributeValue]:
    """A copy with the SDK's rules applied: sequences are frozen, what cannot be an attribute is dropped or made text.

    The API's own class knows these rules, and warns; it is asked only when not everything is plain.
    """
    if not attributes:
        return {}
    if len(attributes) <= ATTRIBUTES_MAX and _are_plain(attributes):
        return dict(attributes)
    return dict(BoundedAttributes(ATTRIBUTES_MAX, attributes))


def _cleaned_links(links: Sequence[Link]) -> Sequence[Link]:
    return tuple(
        Link(link.context, _cleaned(link.attributes)) if link.attributes else link
        for link in links
        if link.context.is_valid or link.attributes or link.context.trace_state
    )[-LINKS_MAX:]
