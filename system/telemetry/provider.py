"""The OpenTelemetry SDK set up for one boot: it makes the spans, we number, encode, spool and ship them.

Every span is recorded: whether a caller sampled its own trace is not a reason to lose an order here. Belongs to the
event loop's thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from system.telemetry.encoding import KINDS, encode_resource, encode_span
from system.telemetry.shipping import SpanShipper
from system.telemetry.spool import NO_SLOT, SpanSpool, StartedSpan

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.trace import Tracer

    from system.metrics import Metrics
    from system.settings import TelemetrySettings

SCOPE_NAME = "system"
SEQ_ATTRIBUTE = "telemetry.seq"


class TracerOwner:
    """Builds the tracer, and starts and stops what stands behind it."""

    def __init__(self, settings: TelemetrySettings, *, instance: str, metrics: Metrics) -> None:
        attributes: dict[str, str | int] = {
            "service.name": settings.service_name,
            "service.instance.id": instance,
            "process.pid": os.getpid(),
        }
        resource = encode_resource(attributes)
        self._spool: SpanSpool | None = None
        self._shipper: SpanShipper | None = None
        if settings.spool_directory is not None:
            self._spool = SpanSpool(
                settings.spool_directory, service=settings.service_name, instance=instance, resource=resource
            )
        if settings.endpoint is not None:
            self._shipper = SpanShipper(settings.endpoint, resource=resource, scope_name=SCOPE_NAME, metrics=metrics)
        provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource(attributes), shutdown_on_exit=False)
        provider.add_span_processor(NumberedSpans(self._spool, self._shipper, metrics))
        self.tracer: Tracer = provider.get_tracer(SCOPE_NAME)

    async def start(self) -> None:
        """Begin to ship."""
        if self._shipper is not None:
            self._shipper.start()

    async def stop(self) -> None:
        """Ship the rest and close the spool."""
        if self._shipper is not None:
            await self._shipper.stop()
        if self._spool is not None:
            self._spool.close()


class NumberedSpans(SpanProcessor):
    """Gives each span its number at the start, and passes its bytes on at the end."""

    def __init__(self, spool: SpanSpool | None, shipper: SpanShipper | None, metrics: Metrics) -> None:
        self._spool = spool
        self._shipper = shipper
        self._seq = 0
        self._open: dict[int, tuple[int, int]] = {}
        self._unspooled = metrics.counter("spans_unspooled", "Ended spans that could not be written to the spool")

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Number the span and note it as open."""
        self._seq += 1
        context = span.get_span_context()
        slot = NO_SLOT
        if self._spool is not None:
            slot = self._spool.started(
                StartedSpan(
                    seq=self._seq,
                    start_ns=span.start_time or 0,
                    trace_id=context.trace_id,
                    span_id=context.span_id,
                    parent_span_id=span.parent.span_id if span.parent is not None else 0,
                    kind=KINDS[span.kind],
                    name=span.name,
                )
            )
        self._open[context.span_id] = (self._seq, slot)

    def on_end(self, span: ReadableSpan) -> None:
        """Encode the span once, for the spool and for the collector."""
        assert span.context is not None, "the SDK gives every recording span a context"  # noqa: S101 - for the type checker
        seq, slot = self._open.pop(span.context.span_id)
        content = encode_span(span, {SEQ_ATTRIBUTE: seq})
        if self._spool is not None and not self._spool.ended(slot, content):
            self._unspooled.add()
        if self._shipper is not None:
            self._shipper.offer(content)
