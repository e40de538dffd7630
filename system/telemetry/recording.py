"""What becomes of the spans of one boot: each is numbered at its start, and encoded, spooled and shipped at its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from system.telemetry.encoding import encode_resource, encode_span, ids
from system.telemetry.fields import KINDS, AttributeHeads, varint
from system.telemetry.shipping import SpanShipper
from system.telemetry.spool import SpanSpool, slot_label

if TYPE_CHECKING:
    from system.metrics import Metrics
    from system.settings import TelemetrySettings
    from system.telemetry.lean_span import LeanSpan
    from system.telemetry.templates import HotSpan

SCOPE_NAME = "system"
SEQ_ATTRIBUTE = "telemetry.seq"

_SEQ = AttributeHeads(SEQ_ATTRIBUTE)
_NO_ID = bytes(8)


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
        """Ship the rest and close the spool; a span that ends later is not kept."""
        if self._shipper is not None:
            await self._shipper.stop()
            self._shipper = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def started(self, span: LeanSpan) -> None:
        """Number the span and note it as open."""
        self._seq = span.seq = self._seq + 1
        if self._spool is not None:
            parent_id = _NO_ID if span.parent is None else ids(span.parent)[1]
            label = slot_label(span.name, KINDS[span.kind])
            span.slot = self._spool.started(span.seq, span.start_time, *ids(span.context), parent_id, label)

    def hot_started(self, span: HotSpan) -> None:
        """Number the span and note it as open."""
        self._seq = span.seq = self._seq + 1
        if self._spool is not None:
            span.slot = self._spool.started(
                span.seq, span.start_ns, span.trace_id, span.span_id, span.parent_id, span.template.label
            )

    def hot_ended(self, span: HotSpan, parts: list[bytes]) -> None:
        """Add the number, and keep the span for the spool and for the collector."""
        number = varint(span.seq)
        parts += (_SEQ.numbers[len(number)], number)
        self._keep(span.slot, b"".join(parts))

    def ended(self, span: LeanSpan) -> None:
        """Encode the span once, for the spool and for the collector."""
        self._keep(span.slot, encode_span(span, {SEQ_ATTRIBUTE: span.seq}))

    def _keep(self, slot: int, content: bytes) -> None:
        if self._spool is not None and not self._spool.ended(slot, content):
            self._unspooled.add()
        if self._shipper is not None:
            self._shipper.offer(content)
