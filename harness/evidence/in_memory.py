"""Evidence written as a table in a test: for testing invariants without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.evidence.store import EvidenceWriter
from harness.records import Channel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.evidence.store import Evidence
    from harness.records import Row

CHANNELS = ("operations", "spans", "messages", "consumers", "advisories", "ledger", "states")


def evidence_of(*rows: Row | tuple[Row, ...], incomplete: Mapping[str, str] | None = None) -> Evidence:
    """Return evidence that holds these rows, every channel complete but those in `incomplete` (name to why).

    A tuple among the rows stands for all its rows, so that a helper may return several.
    """
    whys = dict(incomplete or {})
    writer = EvidenceWriter(None)
    for row in rows:
        writer.write(row if isinstance(row, tuple) else (row,))
    writer.write(
        Channel(
            name=name,
            expected=None if name in whys else 0,
            received=0,
            complete=name not in whys,
            why=whys.get(name, ""),
        )
        for name in CHANNELS
    )
    return writer.finish()
