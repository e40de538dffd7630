"""What a span costs: ours and the OpenTelemetry SDK's behind the same API, in the same run.

    python -m system.benchmarks.spans [--orders 2000] [--rounds 5]

The spans are those of an order, eight with five attributes each on average, made one order after the other on one
core. Each row adds something to what is done with them; the SDK's spans go through the same encoder and the same
spool. CPU time of this process, the system's share included; the best of some rounds that alternate between the two,
because whatever else runs on the machine only adds.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Tracer, set_span_in_context

from system.metrics import Metrics
from system.settings import TelemetrySettings
from system.telemetry.encoding import KINDS, encode_span
from system.telemetry.recording import SEQ_ATTRIBUTE, SpanRecorder
from system.telemetry.spool import NO_SLOT, SpanSpool
from system.telemetry.tracing import LeanSpan, LeanTracer

SPANS_PER_ORDER = 8
_WARM_UP_ORDERS = 100


def order(tracer: Tracer, order_id: str, number: int) -> None:
    """The spans of one order, as the three services make them."""
    with tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER, attributes=_http("/orders")) as placed:
        placed.set_attribute("order.id", order_id)
        created = _publish(tracer, "orders.created", order_id, number)
        placed.set_attribute("http.response.status_code", 202)
    with _process(tracer, created, "order-projection", "orders.created", order_id, number):
        pass
    with _process(tracer, created, "payment-processor", "orders.created", order_id, number):
        attributes: dict[str, str | int] = {**_http("/charges"), "http.request.resend_count": 0, "order.id": order_id}
        with tracer.start_as_current_span("POST /charges", kind=SpanKind.CLIENT, attributes=attributes) as asked:
            context = set_span_in_context(asked, Context())
            with tracer.start_as_current_span(
                "POST /charges", context=context, kind=SpanKind.SERVER, attributes=_http("/charges")
            ) as charged:
                charged.set_attribute("order.id", order_id)
                charged.set_attribute("charge.outcome", "captured")
                charged.set_attribute("http.response.status_code", 201)
            asked.set_attribute("http.response.status_code", 201)
        processed = _publish(tracer, "payments.processed", order_id, number)
    with _process(tracer, processed, "payment-projection", "payments.processed", order_id, number):
        pass


def _http(path: str) -> dict[str, str | int]:
    return {"http.request.method": "POST", "http.route": path, "url.path": path}


def _publish(tracer: Tracer, subject: str, order_id: str, number: int) -> Span:
    attributes = {
        "messaging.system": "nats",
        "messaging.operation.type": "publish",
        "messaging.operation.name": "publish",
        "messaging.destination.name": subject,
        "messaging.message.id": f"{subject}:{order_id}",
        "order.id": order_id,
    }
    with tracer.start_as_current_span(f"publish {subject}", kind=SpanKind.PRODUCER, attributes=attributes) as span:
        span.set_attributes({"messaging.nats.stream.sequence": number, "messaging.nats.duplicate": False})
        return span


class _process:  # noqa: N801 - reads as a block
    """A consumer's span, linked to and under the one that published."""

    def __init__(self, tracer: Tracer, origin: Span, consumer: str, subject: str, order_id: str, number: int) -> None:
        attributes: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": subject,
            "messaging.consumer.group.name": consumer,
            "messaging.nats.delivery_count": 1,
            "messaging.nats.stream.sequence": number,
            "messaging.message.id": f"{subject}:{order_id}",
            "order.id": order_id,
        }
        self._block = tracer.start_as_current_span(
            f"process {subject}",
            context=set_span_in_context(origin, Context()),
            kind=SpanKind.CONSUMER,
            links=[Link(origin.get_span_context())],
            attributes=attributes,
            record_exception=False,
        )

    def __enter__(self) -> None:
        self._block.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self._block.__exit__(None, None, None)


class Nobody:
    """A recorder that lets every span go."""

    def started(self, span: LeanSpan) -> None:
        """Nothing."""

    def ended(self, span: LeanSpan) -> None:
        """Nothing."""


class SdkRecorder(SpanProcessor):
    """What `SpanRecorder` does, for the spans of the SDK."""

    def __init__(self, spool: SpanSpool | None) -> None:
        self._spool = spool
        self._seq = 0
        self._open: dict[int, tuple[int, int]] = {}

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Number the span and note it as open."""
        self._seq += 1
        context, slot = span.get_span_context(), NO_SLOT
        if self._spool is not None:
            slot = self._spool.started(
                seq=self._seq,
                start_ns=span.start_time or 0,
                context=context,
                parent=span.parent,
                kind=KINDS[span.kind],
                name=span.name,
            )
        self._open[context.span_id] = (self._seq, slot)

    def on_end(self, span: ReadableSpan) -> None:
        """Encode and spool."""
        seq, slot = self._open.pop(span.context.span_id)
        content = encode_span(span, {SEQ_ATTRIBUTE: seq})
        if self._spool is not None:
            self._spool.ended(slot, content)


def sdk_tracer(processors: Sequence[SpanProcessor]) -> Tracer:
    """A tracer of the SDK."""
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource({"service.name": "sdk"}), shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider.get_tracer("system")


def lean_tracer(directory: Path | None) -> Tracer:
    """Our tracer with our recorder."""
    settings = TelemetrySettings(service_name="lean", endpoint=None, spool_directory=directory)
    return LeanTracer(SpanRecorder(settings, instance="benchmark", metrics=Metrics()))


def cost_us(tracer: Tracer, orders: int) -> float:
    """CPU µs per span."""
    gc.collect()
    began_ns = time.process_time_ns()
    for number in range(orders):
        order(tracer, f"{number:032x}", number)
    return (time.process_time_ns() - began_ns) / 1_000 / orders / SPANS_PER_ORDER


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stormproof-spans-") as name:
        directory = Path(name)
        spool = SpanSpool(directory, service="sdk", instance="benchmark", resource=b"")
        rows: Sequence[tuple[str, Callable[[], Tracer], Callable[[], Tracer]]] = (
            ("made and let go", lambda: sdk_tracer(()), lambda: LeanTracer(Nobody())),
            ("numbered and encoded", lambda: sdk_tracer((SdkRecorder(None),)), lambda: lean_tracer(None)),
            ("and spooled", lambda: sdk_tracer((SdkRecorder(spool),)), lambda: lean_tracer(directory)),
        )
        print(f"{'CPU µs per span':<24}{'SDK':>8}{'ours':>8}{'ratio':>8}")
        for label, *makers in rows:
            pair = [maker() for maker in makers]
            for tracer in pair:
                cost_us(tracer, _WARM_UP_ORDERS)
            rounds = [[cost_us(tracer, options.orders) for tracer in pair] for _ in range(options.rounds)]
            sdk, ours = (min(column) for column in zip(*rounds, strict=True))
            print(f"{label:<24}{sdk:>8.1f}{ours:>8.1f}{sdk / ours:>7.1f}x")
    print(
        f"{options.orders} orders of {SPANS_PER_ORDER} spans, best of {options.rounds}; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
