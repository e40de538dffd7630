"""The rows of evidence: one frozen dataclass for each table of a run.

Everything the harness learns about a run becomes one of these rows, whoever collected it. The class is the table: its
fields, in order, are the columns, and `harness.evidence.schema` derives the DDL from their types.

Times are nanoseconds since the Unix epoch, all told by the clock of one machine; those of a broker that runs elsewhere
are corrected by how far its clock differs. Trace ids are 32 lower-case hex digits, span ids unsigned 64-bit integers;
both are stored as numbers, not as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

TraceId = NewType("TraceId", str)
SpanId = NewType("SpanId", int)


class Outcome(StrEnum):
    """What is known of an operation: it happened, it certainly did not, or nobody can tell."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One request of the workload with its outcome.

    key: what the operation is about (the order's id), the same in every table.
    intended_ns: when an open-loop schedule wanted it to begin; latency counts from here.
    ended_ns: None when the workload stopped waiting or died before an answer came; the outcome is then unknown.
    trace_id, span_id: the trace context the client sent; the operation is the root of that trace.
    status: the protocol's answer (HTTP status), None without one.
    request: what was asked, as the adapter spells it (JSON), so that a run can be explained without its seed.
    """

    number: int
    kind: str
    key: str
    outcome: Outcome
    intended_ns: int
    began_ns: int
    ended_ns: int | None
    trace_id: TraceId | None
    span_id: SpanId | None
    status: int | None
    detail: str
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One OpenTelemetry span, from any language.

    instance: the boot of the process that made it (`service.instance.id`).
    seq: its number within that boot (`telemetry.seq`), from 1 without gaps; None when the process does not number.
    ended_ns: None for a span that was still open when its process died.
    kind: the OTLP name in lower case (`server`, `client`, `producer`, `consumer`, `internal`).
    status: `unset`, `ok` or `error`.
    key: the value of the first key attribute that the system under test names, None when the span has none.
    attributes: all attributes as one JSON object.
    """

    trace_id: TraceId
    span_id: SpanId
    parent_span_id: SpanId | None
    service: str
    instance: str
    seq: int | None
    name: str
    kind: str
    began_ns: int
    ended_ns: int | None
    status: str
    key: str | None
    attributes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanLink:
    """A link from one span to another, as OpenTelemetry says it."""

    trace_id: TraceId
    span_id: SpanId
    linked_trace_id: TraceId
    linked_span_id: SpanId


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanEvent:
    """A timed event inside a span (an exception, a retry)."""

    trace_id: TraceId
    span_id: SpanId
    at_ns: int
    name: str
    attributes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as the broker stored it, read back by sequence after the run.

    key: what the message is about, found by the adapter; None when it cannot tell.
    trace_id, span_id: the context in its headers, None when they carry none.
    """

    stream: str
    sequence: int
    subject: str
    message_id: str | None
    stored_ns: int
    size_bytes: int
    key: str | None
    trace_id: TraceId | None
    span_id: SpanId | None
    headers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A durable consumer as the broker described it at the end of the run."""

    stream: str
    name: str
    pending: int
    ack_pending: int
    redelivered: int
    delivered_sequence: int
    ack_floor_sequence: int
    config: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One JetStream advisory (a message that exhausted its deliveries, a consumer deleted)."""

    subject: str
    at_ns: int
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line of the payment provider's ledger: money that really moved.

    kind: `charge` or `refund`. amount_minor: in the currency's smallest unit.
    """

    seq: int
    kind: str
    key: str
    charge_id: str
    idempotency_key: str | None
    amount_minor: int
    currency: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a customer sees of one key through the public API after the run.

    state: the system's own word; `absent` when the API says there is no such thing.
    read_ns: when it was read. settled_ns: when the system says it became final, None while it is not.
    """

    key: str
    state: str
    is_final: bool
    read_ns: int
    settled_ns: int | None
    amount_minor: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultWindow:
    """One harm that was done, with what it touched.

    number: the step of the fault program. healed_ns: None when it never healed.
    grip: what the fault itself can prove it caught (bytes swallowed by a proxy, processes killed); 0 is a miss.
    touched: operations in flight in the window that were held up by it, counted from the other channels after the run.
    verified: the injection and the heal were both observed. why: what was observed when they were not.
    """

    number: int
    name: str
    target: str
    began_ns: int
    healed_ns: int | None
    grip: int
    grip_unit: str
    touched: int
    verified: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEvent:
    """Something that happened to a process.

    event: `started`, `ready`, `paused`, `resumed`, `killed`, `stopping` or `exited`. detail: for an exit its code, and
    `unexpected: ...` with the end of the log when nobody had asked for it.
    """

    process: str
    pid: int
    event: str
    at_ns: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """What a load generator says of its own run; at most one row.

    slots: how many operations were due. missed_slots: due and never begun, so the load was not what was asked.
    p50_ms, p99_ms: latency from the intended start, None without any answer. note: what was the limit, in its words.
    """

    begun: int
    slots: int
    missed_slots: int
    rate_asked_per_s: float
    rate_reached_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One independent source of evidence, and whether it brought everything.

    expected: None when the channel cannot know what it should have brought; it is then never complete.
    why: one sentence, always given when the channel is not complete; of a complete one, what else should be known.
    """

    name: str
    expected: int | None
    received: int
    complete: bool
    why: str


Row = (
    Operation
    | Span
    | SpanLink
    | SpanEvent
    | Message
    | Consumer
    | Advisory
    | LedgerEntry
    | State
    | FaultWindow
    | ProcessEvent
    | LoadSummary
    | Channel
)
