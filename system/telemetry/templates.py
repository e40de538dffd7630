"""Spans of the hot path: everything known before a span begins is encoded once, and the rest is put in as bytes.

A span of the OpenTelemetry API, ours as any other, costs a dict, a context and a walk over its attributes. Where ten
thousand orders a second make eight spans each, that is more than there is (figures: `python -m
system.benchmarks.spans`). So the hot path says at import what a span will look like (`SpanTemplate`), and gives its
varying attributes as plain values at the end.

Promises: what such a span says is what one of the API would say; it is numbered, spooled and shipped like any other,
and stands in the same tree: either kind can be the other's parent. Does not: know more attributes than its template,
but for the rare `note`; or see to it that somebody ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from random import getrandbits
from time import time_ns
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import SpanKind, StatusCode

from system.telemetry import fields
from system.telemetry.context import ROOT, Parent, set_current, traceparent_of
from system.telemetry.fields import PARENT_ID, SPAN_ID, TRACE_ID, of_caller_link, of_times, varint
from system.telemetry.spool import slot_label

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

log = logging.getLogger(__name__)

NOTES_MAX = 128
EVENTS_MAX = 128
"""As of the SDK's spans; but here the first ones stay."""

_NO_ID = bytes(8)
# By whether the parent came in a header, and by whether the trace id was drawn at random.
_FLAGS = tuple(
    tuple(
        fields.of_flags(fields.SAMPLED | fields.REMOTE_IS_KNOWN | is_remote | is_random)
        for is_random in (0, fields.RANDOM)
    )
    for is_remote in (0, fields.REMOTE)
)


class HotRecorder(Protocol):
    """Whoever is told of every span."""

    def hot_started(self, span: HotSpan) -> None:
        """Number the span and note it as open."""

    def hot_ended(self, span: HotSpan, parts: list[bytes]) -> None:
        """Keep an ended span, of which everything but its number is in these bytes."""


class SpanTemplate:
    """What the spans of one place have in common.

    constant: attributes that are always the same. varying: names of those given at the end, in this order.
    links_parent: the span also links to its parent, as the messaging conventions ask of those who process.
    """

    __slots__ = ("constant", "heads", "known", "label", "links_parent", "name", "name_and_kind")

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        constant: Mapping[str, AttributeValue] | None = None,
        varying: Sequence[str] = (),
        *,
        links_parent: bool = False,
    ) -> None:
        self.name = name
        self.constant = dict(constant or {})
        self.links_parent = links_parent
        self.heads = tuple(fields.AttributeHeads(key) for key in varying)
        self.name_and_kind = fields.of_name(name, kind)
        self.known = self.name_and_kind + fields.of_attributes(constant)
        self.label = slot_label(name, fields.KINDS[kind])

    def __repr__(self) -> str:
        return f"SpanTemplate({self.name!r})"


class HotSpan:
    """One span of a template. It is what its children stand under; `traceparent` says so to another process.

    parent_id: zeros for a root. start_ns: Unix time. seq, slot: the recorder's notes.
    """

    __slots__ = (
        "_extra",
        "_is_remote",
        "_notes",
        "_recorder",
        "is_random",
        "parent_id",
        "seq",
        "slot",
        "span_id",
        "start_ns",
        "template",
        "trace_id",
        "trace_state",
    )

    is_remote = False  # for its children

    def __init__(
        self, recorder: HotRecorder, template: SpanTemplate, parent: Parent | HotSpan, links: Sequence[Parent]
    ) -> None:
        self._recorder: HotRecorder | None = recorder
        self.template = template
        self._notes: dict[str, AttributeValue] | None = None
        self._extra: list[bytes] | None = None
        self.span_id = (getrandbits(64) or 1).to_bytes(8, "big")  # 0 is no id
        if parent is ROOT:
            self.trace_id = (getrandbits(128) or 1).to_bytes(16, "big")
            self.trace_state = ""
            self.parent_id = _NO_ID
            self.is_random = True
            self._is_remote = False
        else:
            self.trace_id = parent.trace_id
            self.trace_state = parent.trace_state
            self.parent_id = parent.span_id
            self.is_random = parent.is_random
            self._is_remote = parent.is_remote
            if template.links_parent:
                self._extra = [parent.link]
        if links:
            self._extra = [*(self._extra or ()), b"".join([link.link for link in links])]
        self.seq = 0
        self.slot = 0
        self.start_ns = time_ns()
        recorder.hot_started(self)

    @property
    def link(self) -> bytes:
        """A link that leads to it, encoded."""
        return of_caller_link(self.trace_id, self.span_id)

    @property
    def traceparent(self) -> str:
        """The header that says: under this span."""
        return traceparent_of(self)

    def inject(self, headers: dict[str, str]) -> None:
        """Add `traceparent` (and `tracestate`) to headers that are about to leave."""
        headers["traceparent"] = traceparent_of(self)
        if self.trace_state:
            headers["tracestate"] = self.trace_state

    def as_parent(self) -> Parent:
        """What its children stand under, without the rest of the span."""
        return Parent(self.trace_id, self.span_id, self.trace_state, False, self.is_random)  # noqa: FBT003 - positions cost less

    def activate(self) -> None:
        """Be the current span of this task from here on; the next one takes its place."""
        set_current(self)

    def note(self, key: str, value: AttributeValue) -> None:
        """Set an attribute that is not, or not always, given at the end; the last word counts."""
        if self._notes is None:  # most spans have none
            self._notes = {}
        if len(self._notes) < NOTES_MAX:
            self._notes[key] = value

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Note that something happened, now."""
        if self._extra is None:
            self._extra = []
        if len(self._extra) < EVENTS_MAX:
            self._extra.append(fields.of_event(name, attributes, time_ns()))

    def fail(self, description: str, *values: AttributeValue | None) -> None:
        """End the span as failed."""
        self._extra = [*(self._extra or ()), fields.of_status(StatusCode.ERROR, description)]
        self.end(*values)

    def end(self, *values: AttributeValue | None) -> None:  # noqa: C901 - in one piece: a call costs as much as a value
        """End the span, once. values: of the template's varying attributes, in order; None, or none, leaves one out."""
        recorder, template, parent_id = self._recorder, self.template, self.parent_id
        if recorder is None:
            log.warning("the span %r was ended before; what came later is ignored", template.name)
            return
        self._recorder = None
        parts = [
            TRACE_ID,
            self.trace_id,
            SPAN_ID,
            self.span_id,
            of_times(self.start_ns, time_ns()),
            _FLAGS[self._is_remote][self.is_random],
        ]
        if parent_id is not _NO_ID:
            parts += (PARENT_ID, parent_id)
        if self.trace_state:
            parts.append(fields.of_trace_state(self.trace_state))
        if self._notes is None:
            parts.append(template.known)
        else:
            values = self._with_notes(parts, self._notes, values)
        for heads, value in zip(template.heads, values):  # noqa: B905 - leaving values out is allowed, and saying so costs
            if type(value) is str:
                text = value.encode("utf-8", "replace")
                parts += (heads.texts[len(text)], text)
            elif type(value) is int and value >= 0:
                number = varint(value)
                parts += (heads.numbers[len(number)], number)
            elif type(value) is bool:
                parts.append(heads.bools[value])
            elif value is not None:
                parts.append(fields.of_attribute(heads.key, value))
        if self._extra is not None:
            parts += self._extra
        recorder.hot_ended(self, parts)

    def _with_notes(
        self, parts: list[bytes], notes: dict[str, AttributeValue], values: tuple[AttributeValue | None, ...]
    ) -> tuple[AttributeValue | None, ...]:
        """Add what is known and what was noted; returns the values, completed by what was noted of them."""
        template, others = self.template, dict(notes)
        completed = []
        for heads, value in zip_longest(template.heads, values[: len(template.heads)]):
            noted = others.pop(heads.key, None)
            completed.append(noted if value is None else value)
        if others:
            parts += (template.name_and_kind, fields.of_attributes({**template.constant, **others}))
        else:
            parts.append(template.known)
        return tuple(completed)
