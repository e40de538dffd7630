"""Rows of evidence in the shop's words, for writing evidence as a table in a test."""

from __future__ import annotations

from harness.records import FaultWindow, LedgerEntry, Message, Operation, Outcome, SpanId, State, TraceId

MS = 1_000_000
TRACE = TraceId(f"{1:032x}")


def accepted(order: str, *, at_ms: int = 0, outcome: Outcome = Outcome.OK) -> Operation:
    """Make a customer's order, answered 202 unless told otherwise."""
    return Operation(
        number=0,
        kind="create",
        key=order,
        outcome=outcome,
        intended_ns=at_ms * MS,
        began_ns=at_ms * MS,
        ended_ns=at_ms * MS,
        trace_id=TRACE,
        span_id=SpanId(1),
        status=202 if outcome is Outcome.OK else None,
        detail="",
        request="{}",
    )


def stored(order: str, *, at_ms: int = 0, sequence: int = 1, subject: str = "orders.created") -> Message:
    """Make the broker's copy of an event."""
    return Message(
        stream="ORDERS",
        sequence=sequence,
        subject=subject,
        message_id=f"order-created:{order}",
        stored_ns=at_ms * MS,
        size_bytes=64,
        key=order,
        trace_id=TRACE,
        span_id=SpanId(2),
        headers="{}",
    )


def charged(order: str, *, cents: int = 1250, at_ms: int = 0, seq: int = 1) -> LedgerEntry:
    """Make a line of the provider's ledger."""
    return LedgerEntry(
        seq=seq,
        kind="charge",
        key=order,
        charge_id=f"ch_{order}_{at_ms}",
        idempotency_key=order,
        amount_minor=cents,
        currency="EUR",
        at_ns=at_ms * MS,
    )


def declined(order: str, *, seq: int = 1) -> LedgerEntry:
    """Make a line of the ledger that says that the card said no."""
    return LedgerEntry(
        seq=seq,
        kind="decline",
        key=order,
        charge_id="",
        idempotency_key=order,
        amount_minor=1250,
        currency="EUR",
        at_ns=0,
    )


def refunded(order: str, *, cents: int = 1250, at_ms: int = 0) -> LedgerEntry:
    """Make a refund's line of the ledger."""
    return LedgerEntry(
        seq=2,
        kind="refund",
        key=order,
        charge_id=f"re_{order}",
        idempotency_key=order,
        amount_minor=cents,
        currency="EUR",
        at_ns=at_ms * MS,
    )


def seen(order: str, state: str, *, settled_ms: int | None = None) -> State:
    """Make the final read of an order; final when a settling time is given."""
    return State(
        key=order,
        state=state,
        is_final=settled_ms is not None,
        read_ns=0,
        settled_ns=None if settled_ms is None else settled_ms * MS,
        amount_minor=1250,
    )


def healed(*, at_ms: int, began_ms: int = 0) -> FaultWindow:
    """Make a fault that was healed."""
    return FaultWindow(
        number=0,
        name="partition",
        target="payments->nats",
        began_ns=began_ms * MS,
        healed_ns=at_ms * MS,
        grip=1,
        grip_unit="bytes",
        touched=1,
        verified=True,
        why="",
    )
