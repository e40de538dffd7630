"""Payments does not read the trace context of what it is delivered, and begins a trace of its own.

Each half of the story is told, and nobody can put the halves together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I9",)


def plant() -> None:
    """Find nothing in any header."""
    from opentelemetry.context import Context as Nothing

    from system import telemetry

    def extract(headers: Mapping[str, str]) -> Context:
        del headers
        return Nothing()

    telemetry.extract = extract  # planting is what this file is for
