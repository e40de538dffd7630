"""Measurements as text for people, and as one JSON document for others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from system.benchmarks.probes import STALL_MS
from system.benchmarks.results import ACCEPTED_P99_MAX_MS, Measurement

SCHEMA = "stormproof.throughput/1"

_COLUMNS = (
    ("asked/s", 8),
    ("orders/s", 9),
    ("accepted p50", 13),
    ("p99 ms", 8),
    ("settled p50", 12),
    ("p99 ms", 8),
)


def heading(processes: Sequence[str]) -> str:
    """The line above the rows."""
    latency = "".join(name.rjust(width) for name, width in _COLUMNS)
    cpu = "".join(f" {name:>{_width(name)}}" for name in processes)
    return f"{latency} | CPU µs/order:{cpu}   all | other cores | held"


def row(found: Measurement) -> str:
    """One measurement in a line."""
    figures = (
        f"{found.rate_asked_per_s}",
        f"{found.orders_per_s:.1f}",
        f"{found.accepted_p50_ms:.1f}",
        f"{found.accepted_p99_ms:.1f}",
        f"{found.settled_p50_ms:.1f}",
        f"{found.settled_p99_ms:.1f}",
    )
    latency = "".join(figure.rjust(width) for figure, (_, width) in zip(figures, _COLUMNS, strict=True))
    cpu = "".join(f" {us:>{_width(name)}.0f}" for name, us in found.cpu_us_per_order.items())
    held = "yes" if found.is_held else f"no: {', '.join(found.why_not)}"
    return f"{latency} |{' ' * 14}{cpu} {found.cpu_us_per_order_all:>5.0f} | {found.cores_elsewhere:>11.2f} | {held}"


def details(found: Measurement) -> str:
    """One measurement at length."""
    refused = sum(found.refused.values())
    statuses = ", ".join(f"{count} x {status}" for status, count in found.refused.items())
    spans = "nobody can tell how many spans: a process had to be killed"
    if found.spans_per_order is not None:
        spans = f"every order, {found.spans_per_order:.1f} spans per order, {found.spans_lost} lost"
    lines = [
        f"At {found.rate_asked_per_s} orders/s for {found.seconds:g} s over {found.connections} connections:",
        f"  orders      {found.orders} due, {found.begun} begun, {found.accepted} accepted",
        (
            f"              {refused} refused{f' ({statuses})' if statuses else ''}, {found.missed} missed,"
            f" {found.unanswered} unanswered, {found.unsettled} unsettled; {found.charges} charges"
        ),
        (
            f"  accepted    p50 {found.accepted_p50_ms:.1f}, p99 {found.accepted_p99_ms:.1f},"
            f" max {found.accepted_max_ms:.1f} ms from when it was due; sent within {found.late_p99_ms:.1f} ms (p99)"
        ),
        (
            f"  settled     p50 {found.settled_p50_ms:.1f}, p99 {found.settled_p99_ms:.1f},"
            f" max {found.settled_max_ms:.1f} ms; p99 of those that met no stall {found.settled_quiet_p99_ms:.1f} ms"
        ),
        (
            f"  disk        fsync p50 {found.fsync_p50_ms:.1f}, longest {found.fsync_longest_ms:.1f} ms,"
            f" {found.fsync_stalls} stalls over {STALL_MS:g} ms"
        ),
        f"  traced      {spans}",
        (
            f"  machine     {found.cores_busy:.2f} cores busy, {found.cores_elsewhere:.2f} of them with the kernel's"
            f" threads and other programs; {found.cores_stolen:.2f} stolen by the hypervisor"
        ),
        "",
        f"  {'process':<12}{'CPU µs per order':>18}{'share':>8}",
    ]
    everything = found.cpu_us_per_order_all or 1.0
    for name, us in sorted(found.cpu_us_per_order.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<12}{us:>18.1f}{us / everything:>8.0%}")
    lines.append(f"  {'all':<12}{found.cpu_us_per_order_all:>18.1f}")
    return "\n".join(lines)


def document(chosen: Measurement, steps: Sequence[Measurement]) -> str:
    """The chosen measurement, and all that were made under `steps`."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "accepted_p99_max_ms": ACCEPTED_P99_MAX_MS,
            **_plain(chosen),
            "steps": [_plain(step) for step in steps],
        },
        indent=2,
    )


def _plain(found: Measurement) -> dict[str, object]:
    return {**{name: _rounded(value) for name, value in dataclasses.asdict(found).items()}, "held": found.is_held}


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value


def _width(name: str) -> int:
    return max(len(name), 5)
