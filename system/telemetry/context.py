"""Which span is the current one, and how a span travels in headers (W3C Trace Context).

One variable holds the innermost span of a task, whichever kind it is: one of a template (`templates.py`) or one of the
OpenTelemetry API (`lean_span.py`). A task inherits it from whoever made the task.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import TraceState

from system.telemetry.fields import of_caller_link

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

# No version ff, no id of zeros, nothing more after version 00; whoever reads headers strips them.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{53}-)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?:-.*)?"
)
_NAME_LENGTHS = frozenset(map(len, ("traceparent", "tracestate")))
_RANDOM_DIGITS = frozenset("2367abef")  # those with the bit 0x02
_NO_TRACE = bytes(16)
_NO_SPAN = bytes(8)


class Parent:
    """Where a span stands under: ids as bytes, big-endian. is_remote: it came in a header. is_random: as W3C's flag."""

    __slots__ = ("_link", "is_random", "is_remote", "span_id", "trace_id", "trace_state")

    def __init__(
        self,
        trace_id: bytes,
        span_id: bytes,
        trace_state: str = "",
        is_remote: bool = False,  # noqa: FBT001, FBT002 - positions cost less
        is_random: bool = False,  # noqa: FBT001, FBT002 - as above
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.trace_state = trace_state
        self.is_remote = is_remote
        self.is_random = is_random
        self._link = b""

    @property
    def link(self) -> bytes:
        """A link that leads there, encoded; once, because a batch has spans before and after its work that have it."""
        if not self._link:
            self._link = of_caller_link(self.trace_id, self.span_id)
        return self._link

    def __repr__(self) -> str:
        return f"Parent({self.trace_id.hex()}, {self.span_id.hex()})"


ROOT = Parent(_NO_TRACE, _NO_SPAN)
"""Stands for no parent at all, where None stands for the current span."""


class AnySpan(Protocol):
    """What is asked of the current span, whichever kind it is."""

    def as_parent(self) -> Parent:
        """What its children stand under."""

    def note(self, key: str, value: AttributeValue) -> None:
        """Set one attribute."""


_CURRENT: ContextVar[AnySpan | None] = ContextVar("current_span", default=None)


def current() -> AnySpan | None:
    """The innermost span of this task."""
    return _CURRENT.get()


def set_current(span: AnySpan | None) -> None:
    """Make a span the current one of this task from here on."""
    _CURRENT.set(span)


class _Traced(Protocol):
    """What is read of a span for a header."""

    @property
    def trace_id(self) -> bytes:
        """16 bytes, big-endian."""

    @property
    def span_id(self) -> bytes:
        """8 bytes, big-endian."""

    @property
    def is_random(self) -> bool:
        """As W3C's flag."""


def traceparent_of(parent: _Traced) -> str:
    """The header that says: under this span."""
    flags = "03" if parent.is_random else "01"
    return f"00-{parent.trace_id.hex()}-{parent.span_id.hex()}-{flags}"


def parent_in(headers: Mapping[str, str]) -> Parent | None:
    """The caller's span in headers that arrived, whatever the case of their names; None if there is none to go by.

    `tracestate` is looked for in lower case if that is how `traceparent` came.
    """
    traceparent, trace_state = headers.get("traceparent"), headers.get("tracestate", "")
    if traceparent is None:
        lowered = {name.lower(): value for name, value in headers.items() if len(name) in _NAME_LENGTHS}
        traceparent, trace_state = lowered.get("traceparent", ""), lowered.get("tracestate", "")
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    if trace_state:
        trace_state = TraceState.from_header([trace_state]).to_header()  # what cannot be read is not handed on
    trace_hex, span_hex, last_digit = match.groups()
    return Parent(unhexlify(trace_hex), unhexlify(span_hex), trace_state, True, last_digit in _RANDOM_DIGITS)  # noqa: FBT003 - positions cost less
