"""Payments does not read the trace context of what it is delivered, and begins a trace of its own.

Each half of the story is told, and nobody can put the halves together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from system.telemetry import Parent

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I9",)


def plant() -> None:
    """Find nothing in any header."""
    from system import telemetry

    def parent_in(headers: Mapping[str, str]) -> Parent | None:
        del headers
        return None

    telemetry.parent_in = parent_in  # planting is what this file is for
