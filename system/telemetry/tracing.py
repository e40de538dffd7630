"""A lean tracer behind the OpenTelemetry API, and blocks of code within its spans.

With the SDK behind the API the spans of an order cost more CPU than everything else together (figures:
`python -m system.benchmarks.spans`). What it pays for is left out here: locks, samplers, processors, a resource on
every span, and a generator around every block.

Promises: what a program sees and what its spans say is what the SDK would do and say, ids and times apart; a test
holds both against each other. Every span is recorded: whether a caller sampled its own trace is no reason to lose an
order here. Does not: read `OTEL_*` limits from the environment. Belongs to the event loop's thread.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Awaitable, Callable, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from opentelemetry.context import attach, detach
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from system.telemetry.context import ROOT, AnySpan, Parent, current, set_current
from system.telemetry.lean_span import RANDOM, LeanSpan, Recorder, cleaned, cleaned_links, failed_with
from system.telemetry.templates import HotSpan, SpanTemplate

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.util.types import Attributes

_P = ParamSpec("_P")
_R = TypeVar("_R")

_SAMPLED_FLAGS = TraceFlags(TraceFlags.SAMPLED)
_ROOT_FLAGS = TraceFlags(TraceFlags.SAMPLED | RANDOM)


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
            flags = _ROOT_FLAGS if parent.trace_flags & RANDOM else _SAMPLED_FLAGS
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
            span.attributes = cleaned(attributes)
        if links:
            span.links = cleaned_links(links)
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
                    self._span.set_status(failed_with(exc_val))
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
