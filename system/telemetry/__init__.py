"""Traces: how a trace travels in headers, and the tracer whose spans survive a killed process.

Promises: every span of a process is numbered from 1 at its start (`telemetry.seq`) within a boot
(`service.instance.id`), so that a loss can be measured; with a spool directory the ended spans and the list of open
ones outlive SIGKILL (the format is in `spool.py`). Does not: sample, or touch OpenTelemetry's global provider; a
tracer is a value that is passed.

The hot path makes its spans with `LeanTracer.begin` from templates, and hands the caller's context on with `parent_in`
and `traceparent`; everybody else uses the OpenTelemetry API. Callers reach `parent_in`, `inject` and `extract` through
this module, never by a copy of the name.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Self

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from system.metrics import Metrics
from system.settings import TelemetrySettings
from system.telemetry.context import ROOT, Parent, current, parent_in, traceparent_of
from system.telemetry.recording import SpanRecorder
from system.telemetry.templates import HotSpan, SpanTemplate
from system.telemetry.tracing import LeanTracer

__all__ = [
    "ROOT",
    "HotSpan",
    "LeanTracer",
    "Parent",
    "SpanTemplate",
    "Telemetry",
    "about_order",
    "current",
    "extract",
    "inject",
    "parent_in",
]

_W3C = TraceContextTextMapPropagator()
_FIELDS = frozenset(_W3C.fields)  # the property makes a new set each time
_FIELD_LENGTHS = frozenset(map(len, _FIELDS))


def inject(headers: dict[str, str]) -> None:
    """Add the current span as `traceparent` (and `tracestate`) to headers that are about to leave."""
    span = current()
    if span is None:
        _W3C.inject(headers)
        return
    parent = span.as_parent()
    headers["traceparent"] = traceparent_of(parent)
    if parent.trace_state:
        headers["tracestate"] = parent.trace_state


def extract(headers: Mapping[str, str]) -> Context:
    """The caller's span in headers that arrived, whatever the case of their names; empty if there is none."""
    carrier = {
        lowered: value
        for name, value in headers.items()
        if len(name) in _FIELD_LENGTHS and (lowered := name.lower()) in _FIELDS
    }
    return _W3C.extract(carrier, context=Context())


def about_order(order_id: str) -> None:
    """Say on the current span which order it is about."""
    span = current()
    if span is not None:
        span.note("order.id", order_id)


class Telemetry:
    """One boot's tracer, with its spool and its shipping, from `async with` until its end."""

    def __init__(self, settings: TelemetrySettings, metrics: Metrics) -> None:
        self.instance = secrets.token_hex(8)
        self._recorder = SpanRecorder(settings, instance=self.instance, metrics=metrics)
        self.tracer = LeanTracer(self._recorder)

    async def __aenter__(self) -> Self:
        self._recorder.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Ship what is left, bounded, and close the spool."""
        await self._recorder.stop()
