"""One trace, to assert on: what it contains, in which order, whether it is connected; drawn as a tree when it fails.

The operation that the client began is the root; its spans are nodes below it. A span whose parent is unknown hangs on
its own at the end of the drawing, marked as an orphan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.records import Operation, Span, SpanId


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The spans of one operation, in the order they began."""

    operation: Operation
    spans: tuple[Span, ...]

    @property
    def services(self) -> frozenset[str]:
        """Every service that has a span in it."""
        return frozenset(span.service for span in self.spans)

    @property
    def orphans(self) -> tuple[Span, ...]:
        """The spans whose parent is neither a span of this trace nor the operation."""
        known: set[SpanId | None] = {span.span_id for span in self.spans}
        known.add(self.operation.span_id)
        # An operation without a span is nobody's parent, least of all of the spans that name none.
        known.discard(None)
        return tuple(span for span in self.spans if span.parent_span_id not in known)

    @property
    def is_connected(self) -> bool:
        """True when there are spans and each descends from the operation."""
        return bool(self.spans) and not self.orphans

    def must_be_connected(self) -> None:
        """Raise AssertionError, with the trace drawn as a tree, unless it is connected."""
        if not self.spans:
            raise AssertionError(f"no span of operation {self.operation.key} was seen")
        if self.orphans:
            names = ", ".join(f"{span.service}: {span.name}" for span in self.orphans)
            raise AssertionError(
                f"the trace is not connected, these spans have no parent in it: {names}\n{self.tree()}"
            )

    def must_contain(self, *expected: tuple[str, str]) -> None:
        """Raise AssertionError, with the trace drawn as a tree, unless these spans began in this order.

        expected: (service, span name) pairs; other spans may stand between them.
        """
        remaining = iter(self.spans)
        for number, (service, name) in enumerate(expected):
            if not any(span.service == service and span.name == name for span in remaining):
                elsewhere = any(span.service == service and span.name == name for span in self.spans)
                before = f" after {expected[number - 1][0]}: {expected[number - 1][1]}" if number and elsewhere else ""
                raise AssertionError(f"the trace has no span {service}: {name}{before}\n{self.tree()}")

    def tree(self) -> str:
        """Draw it: one line a span, with service, name, kind, start and duration in ms since the operation began."""
        children: dict[SpanId | None, list[Span]] = {}
        orphans = {span.span_id for span in self.orphans}
        for span in self.spans:
            if span.span_id not in orphans:
                children.setdefault(span.parent_span_id, []).append(span)
        width = max((len(span.service) for span in self.spans), default=0)
        lines = [
            f"{self.operation.kind} {self.operation.key}  {self.operation.outcome}  trace {self.operation.trace_id}"
        ]
        lines.extend(self._branches(children, self.operation.span_id, "", width))
        for span in self.orphans:
            lines.append(f"?? orphan, parent {span.parent_span_id or 0:016x} unseen")
            lines.extend(self._branch(children, span, "", width, is_last=True))
        return "\n".join(lines)

    def _branches(
        self, children: dict[SpanId | None, list[Span]], parent: SpanId | None, indent: str, width: int
    ) -> Iterable[str]:
        # Taken out, so that spans with one id, or each other's parents, are drawn once and not for ever.
        spans = children.pop(parent, [])
        for number, span in enumerate(spans, start=1):
            yield from self._branch(children, span, indent, width, is_last=number == len(spans))

    def _branch(
        self, children: dict[SpanId | None, list[Span]], span: Span, indent: str, width: int, *, is_last: bool
    ) -> Iterable[str]:
        at_ms = (span.began_ns - self.operation.began_ns) / 1e6
        lasted = "still open" if span.ended_ns is None else f"{(span.ended_ns - span.began_ns) / 1e6:.1f} ms"
        failed = "  ERROR" if span.status == "error" else ""
        branch = "└─" if is_last else "├─"
        yield (
            f"{indent}{branch} {span.service:<{width}}  {span.name}  [{span.kind}]  +{at_ms:.1f} ms, {lasted}{failed}"
        )
        yield from self._branches(children, span.span_id, indent + ("   " if is_last else "│  "), width)


def trace_from(operation: Operation, spans: Sequence[Span], others: Iterable[Operation] = ()) -> Trace:
    """Pick the spans of an operation's trace, and those about its key that stand in a foreign trace.

    others: further operations, of whose traces those about the same key are not foreign.
    """
    theirs = {other.trace_id for other in others if other.key == operation.key} - {operation.trace_id}
    mine = [
        span
        for span in spans
        if span.trace_id == operation.trace_id or (span.key == operation.key and span.trace_id not in theirs)
    ]
    return Trace(operation=operation, spans=tuple(sorted(mine, key=lambda span: (span.began_ns, span.seq or 0))))
