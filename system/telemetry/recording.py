"""What becomes of the spans of one boot: each is numbered at its start, and encoded, spooled and shipped at its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from system.telemetry.encoding import KINDS, encode_resource, encode_span
from system.telemetry.shipping import SpanShipper
from system.telemetry.spool import SpanSpool

if TYPE_CHECKING:
    from system.metrics import Metrics
    from system.settings import TelemetrySettings
    from system.telemetry.tracing import LeanSpan

SCOPE_NAME = "system"
SEQ_ATTRIBUTE = "telemetry.seq"


class SpanRecorder:
    """Numbers and passes on every span of one boot, from `start` to `stop`."""

    def __init__(self, settings: TelemetrySettings, *, instance: str, metrics: Metrics) -> None:
        resource = encode_resource(
            {
                "service.name": settings.service_name,
                "service.instance.id": instance,
                "process.pid": os.getpid(),
            }
        )
        self._seq = 0
        self._spool: SpanSpool | None = None
        self._shipper: SpanShipper | None = None
        if settings.spool_directory is not None:
            self._spool = SpanSpool(
                settings.spool_directory, service=settings.service_name, instance=instance, resource=resource
            )
        if settings.endpoint is not None:
            self._shipper = SpanShipper(settings.endpoint, resource=resource, scope_name=SCOPE_NAME, metrics=metrics)
        self._unspooled = metrics.counter("spans_unspooled", "Ended spans that could not be written to the spool")

    def start(self) -> None:
        """Begin to ship."""
        if self._shipper is not None:
            self._shipper.start()

    async def stop(self) -> None:
        """Ship the rest and close the spool."""
        if self._shipper is not None:
            await self._shipper.stop()
        if self._spool is not None:
            self._spool.close()

    def started(self, span: LeanSpan) -> None:
        """Number the span and note it as open."""
        self._seq += 1
        span.seq = self._seq
        if self._spool is not None:
            span.slot = self._spool.started(
                seq=span.seq,
                start_ns=span.start_time,
                context=span.context,
                parent=span.parent,
                kind=KINDS[span.kind],
                name=span.name,
            )

    def ended(self, span: LeanSpan) -> None:
        """Encode the span once, for the spool and for the collector."""
        content = encode_span(span, {SEQ_ATTRIBUTE: span.seq})
        if self._spool is not None and not self._spool.ended(span.slot, content):
            self._unspooled.add()
        if self._shipper is not None:
            self._shipper.offer(content)
