"""A lean span behind the OpenTelemetry API: a few fields and a dict, and a recorder that is told.

Promises: what a span says is what the SDK's would say. Does not: count what a limit dropped. Belongs to the event
loop's thread. `tracing.py` makes them.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Protocol

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from system.telemetry.context import Parent
from system.telemetry.encoding import ids
from system.telemetry.templates import HotRecorder

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.util.types import Attributes, AttributeValue

log = logging.getLogger(__name__)

# The SDK's defaults; when one is reached, the oldest goes.
ATTRIBUTES_MAX = 128
EVENTS_MAX = 128
LINKS_MAX = 128

RANDOM = 0x02
"""The flag of W3C trace context level 2: the trace id was drawn at random."""

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
        return Parent(*ids(context), state, context.is_remote, bool(context.trace_flags & RANDOM))

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
            self.attributes = cleaned({**self.attributes, **attributes})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Note that something happened, now or at the timestamp."""
        if self._is_changeable("add_event"):
            event = Event(
                name=name,
                attributes=cleaned(attributes),
                timestamp=time_ns() if timestamp is None else timestamp,
            )
            self.events = (*self.events, event)[-EVENTS_MAX:]

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Link to another span; a link that says nothing is left out."""
        if self._is_changeable("add_link"):
            self.links = (*self.links, *cleaned_links((Link(context, attributes),)))[-LINKS_MAX:]

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
                self.set_status(failed_with(exc_val))
        self.end()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, context={self.context!r})"

    def _is_changeable(self, what: str) -> bool:
        if self.end_time is None:
            return True
        log.warning("%s came after the end of the span %r and is ignored", what, self.name)
        return False


def failed_with(error: BaseException) -> Status:
    """The status of a span that an exception ended."""
    return Status(StatusCode.ERROR, f"{type(error).__name__}: {error}")


def _are_plain(attributes: Mapping[str, AttributeValue]) -> bool:
    return (
        _PLAIN.issuperset(map(type, attributes.values()))
        and _TEXT.issuperset(map(type, attributes))
        and "" not in attributes
    )


def cleaned(attributes: Attributes) -> dict[str, AttributeValue]:
    """A copy with the SDK's rules applied: sequences are frozen, what cannot be an attribute is dropped or made text.

    The API's own class knows these rules, and warns; it is asked only when not everything is plain.
    """
    if not attributes:
        return {}
    if len(attributes) <= ATTRIBUTES_MAX and _are_plain(attributes):
        return dict(attributes)
    return dict(BoundedAttributes(ATTRIBUTES_MAX, attributes))


def cleaned_links(links: Sequence[Link]) -> Sequence[Link]:
    """Those that say anything, with clean attributes, as many as are allowed."""
    return tuple(
        Link(link.context, cleaned(link.attributes)) if link.attributes else link
        for link in links
        if link.context.is_valid or link.attributes or link.context.trace_state
    )[-LINKS_MAX:]
