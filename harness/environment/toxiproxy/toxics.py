"""The toxics of Toxiproxy 2.12, each as a type: what it does to the bytes of one direction of a connection.

Promises: values are checked at birth; `kind` and `attributes` are exactly what Toxiproxy's API expects.

Does not: say when or why a toxic is used; that is a fault's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from harness.errors import PlanError


class Direction(StrEnum):
    """Which bytes a toxic works on."""

    UPSTREAM = "upstream"
    """From the client to the server."""
    DOWNSTREAM = "downstream"
    """From the server to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toxic:
    """Base of all toxics; the subclass's fields are Toxiproxy's attributes without their units."""

    kind: ClassVar[str]
    _wire_names: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise PlanError(f"{field.name}={value} of toxic {self.kind} is below 0")

    def attributes(self) -> dict[str, int]:
        """What goes into the API's `attributes`."""
        return {
            self._wire_names.get(field.name, field.name): getattr(self, field.name)
            for field in dataclasses.fields(self)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyToxic(Toxic):
    """Delay every chunk by latency_ms ± jitter_ms."""

    kind: ClassVar[str] = "latency"
    _wire_names: ClassVar[Mapping[str, str]] = {"latency_ms": "latency", "jitter_ms": "jitter"}
    latency_ms: int
    jitter_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthToxic(Toxic):
    """Pass at most rate_kib_per_s; 0 passes nothing."""

    kind: ClassVar[str] = "bandwidth"
    _wire_names: ClassVar[Mapping[str, str]] = {"rate_kib_per_s": "rate"}
    rate_kib_per_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCloseToxic(Toxic):
    """Close the connection only delay_ms after it should."""

    kind: ClassVar[str] = "slow_close"
    _wire_names: ClassVar[Mapping[str, str]] = {"delay_ms": "delay"}
    delay_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutToxic(Toxic):
    """Swallow all bytes and close after timeout_ms; 0 swallows until the toxic is removed, which closes then."""

    kind: ClassVar[str] = "timeout"
    _wire_names: ClassVar[Mapping[str, str]] = {"timeout_ms": "timeout"}
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPeerToxic(Toxic):
    """Reset the connection timeout_ms after data flows; it sleeps uninterruptibly, so prefer 0."""

    kind: ClassVar[str] = "reset_peer"
    _wire_names: ClassVar[Mapping[str, str]] = {"timeout_ms": "timeout"}
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicerToxic(Toxic):
    """Cut data into pieces of average_bytes ± variation_bytes, delay_us apart."""

    kind: ClassVar[str] = "slicer"
    _wire_names: ClassVar[Mapping[str, str]] = {
        "average_bytes": "average_size",
        "variation_bytes": "size_variation",
        "delay_us": "delay",
    }
    average_bytes: int
    variation_bytes: int = 0
    delay_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDataToxic(Toxic):
    """Close the connection after this many bytes."""

    kind: ClassVar[str] = "limit_data"
    _wire_names: ClassVar[Mapping[str, str]] = {"limit_bytes": "bytes"}
    limit_bytes: int
