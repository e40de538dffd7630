"""What a load generator leaves beside the history: `load.json`, its own account of what it was asked and what it did.

`begun` is -1 while it runs; a file that still says so is the file of a generator that died, and is no summary.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.records import LoadSummary

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "load.json"
CANNOT_SAY = -1


def read_load_summary(path: Path) -> LoadSummary | None:
    """Return the summary, None when there is none that can be believed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        latency = found["latency_ms"]
        summary = LoadSummary(
            begun=int(found["begun"]),
            slots=int(found["slots"]),
            missed_slots=int(found["missed_slots"]),
            rate_asked_per_s=float(found["rate_asked_per_s"]),
            rate_reached_per_s=float(found["rate_reached_per_s"]),
            p50_ms=_number(latency.get("p50")),
            p99_ms=_number(latency.get("p99")),
            note=str(found["note"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return summary if summary.begun > CANNOT_SAY else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
