"""Evidence written as a table, for tests: one short call a row, times in ms since an origin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.evidence.store import EvidenceWriter
from harness.plan import Plan
from harness.records import (
    Channel,
    FaultWindow,
    LedgerEntry,
    Message,
    Operation,
    ProcessEvent,
    Span,
    SpanId,
    State,
    TraceId,
)
from harness.records import Outcome as Answer

if TYPE_CHECKING:
    from harness.evidence.store import Evidence
    from harness.records import Row

T0_NS = 1_800_000_000_000_000_000
HOSTILE = "o1\"'><script src='https://evil.example/x.js'></script>\u202e\x00<img src=x onerror=alert(1)>"
"""A key that is text and nothing else, whatever it looks like."""


def at(ms: float) -> int:
    """Return the time so many milliseconds after the run's origin."""
    return T0_NS + round(ms * 1e6)


def trace_of(key: str) -> TraceId:
    """Return a trace id that differs from key to key."""
    return TraceId(key.encode().hex().ljust(32, "0")[-32:])


def asked(
    key: str, *, at_ms: float, took_ms: float | None = 20, answer: Answer = Answer.OK, detail: str = ""
) -> Operation:
    """Return an operation that began on time."""
    return Operation(
        number=0,
        kind="create",
        key=key,
        outcome=answer,
        intended_ns=at(at_ms),
        began_ns=at(at_ms),
        ended_ns=None if took_ms is None else at(at_ms + took_ms),
        trace_id=trace_of(key),
        span_id=SpanId(1),
        status={Answer.OK: 202, Answer.FAILED: 400, Answer.UNKNOWN: None}[answer],
        detail=detail,
        request="{}",
    )


def settled(key: str, *, at_ms: float | None, state: str = "PAID", read_ms: float = 6000) -> State:
    """Return a final read."""
    return State(
        key=key,
        state=state,
        is_final=at_ms is not None,
        read_ns=at(read_ms),
        settled_ns=None if at_ms is None else at(at_ms),
        amount_minor=1250,
    )


def charged(key: str, *, at_ms: float, seq: int = 1) -> LedgerEntry:
    """Return a charge."""
    return LedgerEntry(
        seq=seq,
        kind="charge",
        key=key,
        charge_id=f"ch-{seq}",
        idempotency_key=key,
        amount_minor=1250,
        currency="EUR",
        at_ns=at(at_ms),
    )


def stored(key: str, *, at_ms: float, subject: str = "orders.created", sequence: int = 1) -> Message:
    """Return a stored message."""
    return Message(
        stream="ORDERS",
        sequence=sequence,
        subject=subject,
        message_id=None,
        stored_ns=at(at_ms),
        size_bytes=100,
        key=key,
        trace_id=trace_of(key),
        span_id=SpanId(2),
        headers="{}",
    )


def spanned(
    key: str,
    *,
    at_ms: float,
    took_ms: float | None = 5,
    name: str = "charge",
    number: int = 3,
) -> Span:
    """Return a span about the key."""
    return Span(
        trace_id=trace_of(key),
        span_id=SpanId(number),
        parent_span_id=SpanId(1),
        service="payments",
        instance="b1",
        seq=number,
        name=name,
        kind="client",
        began_ns=at(at_ms),
        ended_ns=None if took_ms is None else at(at_ms + took_ms),
        status="unset",
        key=None,
        attributes="{}",
    )


def fault(
    *,
    from_ms: float,
    to_ms: float | None,
    target: str = "payments->nats",
    touched: int = 7,
    number: int = 1,
) -> FaultWindow:
    """Return a partition's window."""
    return FaultWindow(
        number=number,
        name="partition",
        target=target,
        began_ns=at(from_ms),
        healed_ns=None if to_ms is None else at(to_ms),
        grip=4321,
        grip_unit="bytes",
        touched=touched,
        verified=to_ms is not None,
        why="" if to_ms is not None else "the probe heard nothing",
    )


def happened(process: str, event: str, *, at_ms: float, pid: int = 100, detail: str = "boot 1") -> ProcessEvent:
    """Return something that happened to a process."""
    return ProcessEvent(process=process, pid=pid, event=event, at_ns=at(at_ms), detail=detail)


def channel(name: str, *, received: int = 1, why: str = "") -> Channel:
    """Return a channel, complete unless it says why not."""
    return Channel(name=name, expected=None if why else received, received=received, complete=not why, why=why)


def plan(experiment: str = "payments-partition", *, backend: str = "embedded", mutant: str | None = None) -> Plan:
    """Return a plan."""
    return Plan(
        system="shop",
        experiment=experiment,
        seed=7,
        backend=backend,
        rate_per_s=100.0,
        duration_s=5.0,
        requests_sha256="",
        program=[],
        mutant=mutant,
    )


def evidence_of(*rows: Row) -> Evidence:
    """Return evidence of these rows, in memory."""
    writer = EvidenceWriter(None)
    writer.write(rows)
    return writer.finish()
