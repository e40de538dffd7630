"""A tracer whose ended spans a test can read."""

from __future__ import annotations

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from system.telemetry.encoding import encode_span
from system.telemetry.lean_span import LeanSpan
from system.telemetry.templates import HotSpan
from system.telemetry.tracing import LeanTracer


class Spans:
    """A tracer, and everything it recorded in the order in which it ended."""

    def __init__(self) -> None:
        self._kept = _Kept()
        self.tracer = LeanTracer(self._kept)

    @property
    def ended(self) -> list[Span]:
        """The spans that ended, as a collector would read them."""
        return [Span.FromString(content) for content in self._kept.contents]

    @property
    def open(self) -> int:
        """How many have not ended."""
        return self._kept.begun - len(self._kept.contents)


class _Kept:
    """A recorder that keeps the bytes of what ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.contents: list[bytes] = []

    def started(self, span: LeanSpan) -> None:
        self.begun += 1
        span.seq = self.begun

    def ended(self, span: LeanSpan) -> None:
        self.contents.append(encode_span(span, {}))

    def hot_started(self, span: HotSpan) -> None:
        self.begun += 1
        span.seq = self.begun

    def hot_ended(self, span: HotSpan, parts: list[bytes]) -> None:
        del span
        self.contents.append(b"".join(parts))
