"""Reads the payment provider's ledger, line by line, without asking the provider."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.records import Channel, LedgerEntry
from harness.system_under_test import LedgerReading

if TYPE_CHECKING:
    from pathlib import Path

    from harness.environment.topology import Wiring

FILE_NAME = "ledger.jsonl"
KINDS = frozenset({"charge", "decline", "refund", "void"})
"""What money can do here; of another kind no invariant would know what it means."""


def read_ledger(wiring: Wiring) -> LedgerReading:
    """Read the ledger of a run whose provider has stopped."""
    return read_ledger_file(wiring.directory("provider") / FILE_NAME)


def read_ledger_file(path: Path) -> LedgerReading:
    """Read a ledger file. It is whole when its lines are numbered from 1 without gaps and the last one is not torn."""
    if not path.is_file():
        channel = Channel(
            name="ledger", expected=None, received=0, complete=False, why=f"there is no ledger at {path.name}"
        )
        return LedgerReading(entries=(), channel=channel)
    entries: list[LedgerEntry] = []
    gaps: list[str] = []
    # Not `splitlines`, nor the newlines of text mode: a line ends at LF alone, an id may hold U+2028.
    *lines, last = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        try:
            entry = _entry(json.loads(line))
        except (ValueError, KeyError, TypeError):
            gaps.append(f"line {number} is torn or not a ledger entry")
            continue
        if entry.seq != len(entries) + 1:
            gaps.append(f"line {number} has number {entry.seq} where {len(entries) + 1} was due")
        entries.append(entry)
    expected = max((entry.seq for entry in entries), default=0)
    channel = Channel(
        name="ledger", expected=expected, received=len(entries), complete=not gaps, why="; ".join(gaps[:3])
    )
    return LedgerReading(entries=tuple(entries), channel=channel)


def _entry(line: dict[str, object]) -> LedgerEntry:
    if line["kind"] not in KINDS:
        raise ValueError(f"kind is {line['kind']!r}")
    return LedgerEntry(
        seq=int(str(line["seq"])),
        kind=str(line["kind"]),
        key=str(line["order_id"]),
        charge_id=str(line["charge_id"]),
        idempotency_key=None if line.get("idempotency_key") is None else str(line["idempotency_key"]),
        amount_minor=int(str(line["amount_minor"])),
        currency=str(line["currency"]),
        at_ns=int(str(line["at_ns"])),
    )
