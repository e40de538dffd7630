"""I9: the trace of every accepted operation is connected.

The operation is the root: the client sends its own trace context, so every span of that operation descends from it.
Seen as bad (safety): spans of the operation in a foreign trace, a second root, a message stored without the context of
its publish. Not seen as good (liveness): an operation without any span, a span whose parent is nowhere, a message whose
delivery no span tells of.

Spans that were open when their process died count as parents: the channel keeps them (`ended_ns` is NULL). A delivery
is asked of each durable consumer that the broker delivered the message to, by `messaging.consumer.group.name`; where
nobody uses that attribute, or the broker's consumers are not known, any one delivery will do. A span that receives or
settles a batch links to everything in it, and proves nothing of what became of one message: it does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.invariant import Examination, Invariant

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_ACCEPTED = """
WITH accepted AS (
    SELECT key, trace_id, span_id FROM operations WHERE outcome = 'ok' AND trace_id IS NOT NULL
), roots AS (
    SELECT key, trace_id, span_id FROM operations WHERE trace_id IS NOT NULL
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTrace:
    """Spans about one operation stand in a trace that its client did not begin."""

    key: str
    service: str
    span: str
    spans: int

    def sentence(self) -> str:
        """Say it."""
        return (
            f"{self.key}: {self.spans} span(s) of {self.service}, the first `{self.span}`, stand in a foreign trace: "
            f"the trace context was not carried"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondRoot:
    """A span without a parent inside the operation's trace, where the operation itself is the root."""

    key: str
    service: str
    span: str

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key}: `{self.span}` of {self.service} is a second root in its trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWithoutContext:
    """A stored message whose headers carry no trace context."""

    key: str
    subject: str
    stream: str
    sequence: int

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key}: message {self.stream}#{self.sequence} ({self.subject}) was stored without a trace context"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanSpan:
    """A span whose parent was never seen."""

    key: str
    service: str
    span: str

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key}: the parent of `{self.span}` of {self.service} was never seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSpans:
    """An accepted operation of which no span tells."""

    key: str

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key}: was accepted, but no span of its trace was seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlinkedDelivery:
    """A message that was delivered to a consumer, and no span of it is linked to the publish."""

    key: str
    subject: str
    stream: str
    sequence: int
    consumer: str

    def sentence(self) -> str:
        """Say it."""
        message = f"{self.stream}#{self.sequence} ({self.subject})"
        return f"{self.key}: no span is linked to the publish of message {message} for its delivery to {self.consumer}"


def _look(evidence: Evidence) -> Examination:
    foreign = evidence.query(
        _ACCEPTED
        + """
        SELECT s.key, s.service, arg_min(s.name, s.began_ns), count(*)
        FROM spans s
        WHERE s.key IN (SELECT key FROM accepted)
          AND (s.key, s.trace_id) NOT IN (SELECT key, trace_id FROM roots)
        GROUP BY s.key, s.service, s.trace_id ORDER BY min(s.began_ns), s.service
        """
    )
    second_roots = evidence.query(
        _ACCEPTED
        + """
        SELECT a.key, s.service, s.name FROM spans s JOIN accepted a USING (trace_id)
        WHERE s.parent_span_id IS NULL ORDER BY s.began_ns, s.span_id
        """
    )
    without_context = evidence.query(
        _ACCEPTED
        + """
        SELECT key, subject, stream, sequence FROM messages
        WHERE key IN (SELECT key FROM accepted) AND span_id IS NULL ORDER BY stream, sequence
        """
    )
    # EXCEPT, not NOT EXISTS: six times faster on millions of spans.
    orphans = evidence.query(
        _ACCEPTED
        + """
        , lost AS (
            SELECT trace_id, parent_span_id AS span_id FROM spans
            WHERE parent_span_id IS NOT NULL AND trace_id IN (SELECT trace_id FROM accepted)
            EXCEPT SELECT trace_id, span_id FROM spans
            EXCEPT SELECT trace_id, span_id FROM roots
        )
        SELECT a.key, s.service, s.name
        FROM spans s JOIN lost l ON l.trace_id = s.trace_id AND l.span_id = s.parent_span_id
        JOIN accepted a ON a.trace_id = s.trace_id
        ORDER BY s.began_ns, s.span_id
        """
    )
    silent = evidence.query(
        _ACCEPTED
        + """
        SELECT key FROM accepted WHERE trace_id IN (
            SELECT trace_id FROM accepted EXCEPT SELECT trace_id FROM spans
        ) ORDER BY key
        """
    )
    unlinked = evidence.query(
        _ACCEPTED
        + """
        , told AS (
            SELECT l.linked_trace_id AS trace_id, l.linked_span_id AS span_id, s.kind, s.ended_ns, s.attributes
            FROM span_links l JOIN spans s ON s.trace_id = l.trace_id AND s.span_id = l.span_id
            WHERE coalesce(json_extract_string(s.attributes, '$."messaging.operation.type"'), 'process') = 'process'
            UNION ALL
            SELECT trace_id, parent_span_id, kind, ended_ns, attributes FROM spans
            WHERE kind = 'consumer' AND parent_span_id IS NOT NULL
        ), told_by AS (
            SELECT DISTINCT trace_id, span_id,
                   CASE WHEN ended_ns IS NOT NULL
                        THEN json_extract_string(attributes, '$."messaging.consumer.group.name"') END AS consumer
            FROM told
        ), convention AS (
            SELECT count(*) > 0 AS is_used FROM told_by WHERE consumer IS NOT NULL
        ), filters AS (
            SELECT stream, name, delivered_sequence, unnest(
                CASE WHEN json_array_length(config, '$.filter_subjects') > 0
                     THEN json_extract_string(config, '$.filter_subjects[*]')
                     ELSE [coalesce(nullif(json_extract_string(config, '$.filter_subject'), ''), '>')] END
            ) AS subject FROM consumers
        ), taking AS (
            -- As NATS matches: * is one token, > at the end is one or more.
            SELECT stream, name, delivered_sequence,
                   replace(replace(regexp_escape(subject), '\\*', '[^.]+'), '\\>', '.+') AS pattern FROM filters
        ), due AS (
            SELECT m.trace_id, m.span_id, c.name AS consumer
            FROM messages m JOIN taking c ON c.stream = m.stream AND m.sequence <= c.delivered_sequence
            CROSS JOIN convention
            WHERE is_used AND m.key IN (SELECT key FROM accepted) AND m.span_id IS NOT NULL
              AND regexp_full_match(m.subject, c.pattern)
            UNION
            SELECT m.trace_id, m.span_id, NULL
            FROM messages m CROSS JOIN convention
            LEFT JOIN (
                SELECT stream, max(delivered_sequence) AS delivered FROM consumers GROUP BY stream
            ) c USING (stream)
            WHERE m.key IN (SELECT key FROM accepted) AND m.span_id IS NOT NULL
              AND (c.delivered IS NULL OR NOT is_used AND m.sequence <= c.delivered)
        ), untold AS (
            SELECT trace_id, span_id, consumer FROM due
            EXCEPT SELECT d.trace_id, d.span_id, d.consumer FROM due d JOIN told_by t USING (trace_id, span_id)
            WHERE t.consumer = d.consumer OR t.consumer IS NULL OR d.consumer IS NULL
        )
        SELECT m.key, m.subject, m.stream, m.sequence, coalesce(u.consumer, 'anybody')
        FROM messages m JOIN untold u USING (trace_id, span_id) ORDER BY m.stream, m.sequence, u.consumer
        """
    )
    return Examination(
        examined=evidence.count(_ACCEPTED + "SELECT count(*) FROM accepted"),
        safety=(
            *(ForeignTrace(key=key, service=service, span=span, spans=spans) for key, service, span, spans in foreign),
            *(SecondRoot(key=key, service=service, span=span) for key, service, span in second_roots),
            *(
                MessageWithoutContext(key=key, subject=subject, stream=stream, sequence=sequence)
                for key, subject, stream, sequence in without_context
            ),
        ),
        liveness=(
            *(NoSpans(key=key) for (key,) in silent),
            *(OrphanSpan(key=key, service=service, span=span) for key, service, span in orphans),
            *(
                UnlinkedDelivery(key=key, subject=subject, stream=stream, sequence=sequence, consumer=consumer)
                for key, subject, stream, sequence, consumer in unlinked
            ),
        ),
    )


connected_traces = Invariant(
    id="I9",
    name="traces are connected",
    claim="the spans of an accepted operation form one trace: one root, no orphan, each delivery linked to its publish",
    needs=("operations", "spans", "messages", "consumers"),
    look=_look,
)
