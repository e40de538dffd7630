"""What a span costs: the OpenTelemetry SDK's, ours behind the same API, and one of a template, in the same run.

    python -m system.benchmarks.spans [--orders 2000] [--rounds 5]

The spans are those of an order, eight with six attributes each on average, made one order after the other on one
core. Each row adds something to what is done with them; the SDK's spans go through the same encoder, spool and queue.
The last column is one span of a template with four varying attributes, two of them texts. CPU time of this process, the
system's share included; the best of some rounds that alternate between the columns, because whatever else runs on the
machine only adds. What it costs to put spans into requests is printed below; the sending is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Tracer, set_span_in_context

from system.metrics import Metrics
from system.settings import TelemetrySettings
from system.telemetry import ROOT
from system.telemetry.encoding import encode_request, encode_span
from system.telemetry.fields import KINDS
from system.telemetry.lean_span import LeanSpan
from system.telemetry.recording import SEQ_ATTRIBUTE, SpanRecorder
from system.telemetry.shipping import SpanShipper
from system.telemetry.spool import NO_SLOT, SpanSpool, slot_label
from system.telemetry.templates import HotSpan, SpanTemplate
from system.telemetry.tracing import LeanTracer

SPANS_PER_ORDER = 8
_NOWHERE = "http://127.0.0.1:9"
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


_MESSAGE = {"messaging.system": "nats"}
_PUBLISHED = ("messaging.message.id", "order.id", "messaging.nats.stream.sequence", "messaging.nats.duplicate")
_DELIVERED = ("messaging.message.id", "order.id", "messaging.nats.delivery_count", "messaging.nats.stream.sequence")


def _publish_template(subject: str) -> SpanTemplate:
    constant = {
        **_MESSAGE,
        "messaging.operation.type": "publish",
        "messaging.operation.name": "publish",
        "messaging.destination.name": subject,
    }
    return SpanTemplate(f"publish {subject}", SpanKind.PRODUCER, constant, _PUBLISHED)


def _process_template(subject: str, consumer: str) -> SpanTemplate:
    constant = {
        **_MESSAGE,
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": subject,
        "messaging.consumer.group.name": consumer,
    }
    return SpanTemplate(f"process {subject}", SpanKind.CONSUMER, constant, _DELIVERED, links_parent=True)


_ANSWERED = ("order.id", "http.response.status_code")
_PLACED = SpanTemplate("POST /orders", SpanKind.SERVER, _http("/orders"), _ANSWERED)
_CREATED = _publish_template("orders.created")
_PROJECTED = _process_template("orders.created", "order-projection")
_PAID = _process_template("orders.created", "payment-processor")
_ASKED = SpanTemplate(
    "POST /charges", SpanKind.CLIENT, {**_http("/charges"), "http.request.resend_count": 0}, _ANSWERED
)
_CHARGED = SpanTemplate("POST /charges", SpanKind.SERVER, _http("/charges"), (*_ANSWERED, "charge.outcome"))
_PROCESSED = _publish_template("payments.processed")
_SETTLED = _process_template("payments.processed", "payment-projection")


def order_of_templates(tracer: LeanTracer, order_id: str, number: int) -> None:
    """The same spans, made from templates."""
    placed = tracer.begin(_PLACED, ROOT)
    created = tracer.begin(_CREATED, placed)
    created.end(f"orders.created:{order_id}", order_id, number, False)  # noqa: FBT003 - an attribute's value
    placed.end(order_id, 202)
    tracer.begin(_PROJECTED, created).end(f"orders.created:{order_id}", order_id, 1, number)
    paid = tracer.begin(_PAID, created)
    asked = tracer.begin(_ASKED, paid)
    tracer.begin(_CHARGED, asked).end(order_id, 201, "captured")
    asked.end(order_id, 201)
    processed = tracer.begin(_PROCESSED, paid)
    processed.end(f"payments.processed:{order_id}", order_id, number, False)  # noqa: FBT003 - an attribute's value
    paid.end(f"orders.created:{order_id}", order_id, 1, number)
    tracer.begin(_SETTLED, processed).end(f"payments.processed:{order_id}", order_id, 1, number)


class Nobody:
    """A recorder that lets every span go."""

    def started(self, span: LeanSpan) -> None:
        """Nothing."""

    def ended(self, span: LeanSpan) -> None:
        """Nothing."""

    def hot_started(self, span: HotSpan) -> None:
        """Nothing."""

    def hot_ended(self, span: HotSpan, parts: list[bytes]) -> None:
        """Nothing."""


def one_of_a_template(tracer: LeanTracer, order_id: str, number: int) -> None:
    """As many spans with four varying attributes, none of them under another."""
    message_id = f"orders.created:{order_id}"
    for _ in range(SPANS_PER_ORDER):
        tracer.begin(_CREATED, ROOT).end(message_id, order_id, number, False)  # noqa: FBT003 - an attribute's value


class SdkRecorder(SpanProcessor):
    """What `SpanRecorder` does, for the spans of the SDK."""

    def __init__(self, spool: SpanSpool | None, shipper: SpanShipper | None) -> None:
        self._spool = spool
        self._shipper = shipper
        self._seq = 0
        self._open: dict[int, tuple[int, int]] = {}

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Number the span and note it as open."""
        self._seq += 1
        context, slot = span.get_span_context(), NO_SLOT
        if self._spool is not None:
            slot = self._spool.started(
                self._seq,
                span.start_time or 0,
                context.trace_id.to_bytes(16, "big"),
                context.span_id.to_bytes(8, "big"),
                bytes(8) if span.parent is None else span.parent.span_id.to_bytes(8, "big"),
                slot_label(span.name, KINDS[span.kind]),
            )
        self._open[context.span_id] = (self._seq, slot)

    def on_end(self, span: ReadableSpan) -> None:
        """Encode and spool."""
        seq, slot = self._open.pop(span.context.span_id)
        content = encode_span(span, {SEQ_ATTRIBUTE: seq})
        if self._spool is not None:
            self._spool.ended(slot, content)
        if self._shipper is not None:
            self._shipper.offer(content)


def sdk_tracer(processors: Sequence[SpanProcessor]) -> Tracer:
    """A tracer of the SDK."""
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource({"service.name": "sdk"}), shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider.get_tracer("system")


def lean_tracer(directory: Path | None, *, name: str, endpoint: str | None = None) -> LeanTracer:
    """Our tracer with our recorder."""
    settings = TelemetrySettings(service_name=name, endpoint=endpoint, spool_directory=directory)
    return LeanTracer(SpanRecorder(settings, instance="benchmark", metrics=Metrics()))


def cost_us(make: Callable[[str, int], None], orders: int) -> float:
    """CPU µs per span."""
    gc.collect()
    began_ns = time.process_time_ns()
    for number in range(orders):
        make(f"{number:032x}", number)
    return (time.process_time_ns() - began_ns) / 1_000 / orders / SPANS_PER_ORDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The tracers of one row."""

    label: str
    sdk: Tracer
    lean: LeanTracer
    hot: LeanTracer

    def columns(self) -> Sequence[Callable[[str, int], None]]:
        """What is measured, each of eight spans."""
        return (
            partial(order, self.sdk),
            partial(order, self.lean),
            partial(order_of_templates, self.hot),
            partial(one_of_a_template, self.hot),
        )


def rows(directory: Path) -> Sequence[Row]:
    """From nothing to everything."""
    spool = SpanSpool(directory, service="sdk", instance="benchmark", resource=b"")
    shipper = SpanShipper(_NOWHERE, resource=b"", scope_name="sdk", metrics=Metrics())
    return (
        Row(label="made and let go", sdk=sdk_tracer(()), lean=LeanTracer(Nobody()), hot=LeanTracer(Nobody())),
        Row(
            label="numbered and encoded",
            sdk=sdk_tracer((SdkRecorder(None, None),)),
            lean=lean_tracer(None, name="lean"),
            hot=lean_tracer(None, name="hot"),
        ),
        Row(
            label="and spooled",
            sdk=sdk_tracer((SdkRecorder(spool, None),)),
            lean=lean_tracer(directory, name="lean"),
            hot=lean_tracer(directory, name="hot"),
        ),
        Row(
            label="and queued for shipping",
            sdk=sdk_tracer((SdkRecorder(spool, shipper),)),
            lean=lean_tracer(directory, name="lean-queued", endpoint=_NOWHERE),
            hot=lean_tracer(directory, name="hot-queued", endpoint=_NOWHERE),
        ),
    )


def request_us(rounds: int) -> float:
    """CPU µs per span for putting a thousand of them into a request."""
    spans = [bytes(300 + number % 64) for number in range(1_000)]
    costs = []
    for _ in range(rounds):
        began_ns = time.process_time_ns()
        encode_request(b"", "system", spans)
        costs.append((time.process_time_ns() - began_ns) / 1_000 / len(spans))
    return min(costs)


async def measure(orders: int, rounds: int) -> None:
    """Measure and print; there is a loop because a queue to be shipped belongs to one, not because it runs."""
    with tempfile.TemporaryDirectory(prefix="stormproof-spans-") as name:
        print(f"{'CPU µs per span':<26}{'SDK':>8}{'ours':>8}{'template':>10}{'of four':>10}")
        for row in rows(Path(name)):
            columns = row.columns()
            for make in columns:
                cost_us(make, _WARM_UP_ORDERS)
            measured = [[cost_us(make, orders) for make in columns] for _ in range(rounds)]
            sdk, lean, hot, four = (min(column) for column in zip(*measured, strict=True))
            print(f"{row.label:<26}{sdk:>8.1f}{lean:>8.1f}{hot:>10.1f}{four:>10.1f}")
    print(f"put into a request: {request_us(rounds):.2f}")
    print(f"{orders} orders of {SPANS_PER_ORDER} spans, best of {rounds}; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    asyncio.run(measure(options.orders, options.rounds))


if __name__ == "__main__":
    main()
