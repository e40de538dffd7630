"""The axes of the picture: seconds, counts and latencies to SVG units, and the round values that stand beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Upward = Callable[[float], float]

LEFT = 60.0
RIGHT = 1068.0
_LATENCY_MS_MIN = 0.01
_Y_TICKS = 3
_X_TICKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One value on an axis, and where it stands."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Across:
    """From seconds to the horizontal."""

    began_s: float
    ended_s: float

    def x(self, at_s: float) -> float:
        """Return where a moment stands; what lies outside stands at the edge."""
        share = (at_s - self.began_s) / (self.ended_s - self.began_s)
        return LEFT + min(1.0, max(0.0, share)) * (RIGHT - LEFT)


def upward(counts: Sequence[int], top: float, bottom: float) -> tuple[tuple[Tick, ...], Upward]:
    """Return an axis of counts from 0, and where on it a count stands. counts: at least one."""
    step = max(1.0, _round_step(max(counts), _Y_TICKS))
    highest = step * max(1, math.ceil(max(counts) / step))

    def up(count: float) -> float:
        return bottom - (bottom - top) * count / highest

    values = (round(step * number) for number in range(round(highest / step) + 1))
    return tuple(Tick(at=up(value), text=f"{value:,}") for value in values), up


def upward_log(drawn_ms: Sequence[float], top: float, bottom: float) -> tuple[tuple[Tick, ...], Upward]:
    """Return a logarithmic axis of latencies, and where on it one stands. drawn_ms: at least one."""
    values = [value for power in range(-2, 7) for value in (1 * 10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    least, most = max(_LATENCY_MS_MIN, min(drawn_ms)), max(_LATENCY_MS_MIN, *drawn_ms)
    lowest = max((value for value in values if value <= least), default=values[0])
    highest = min((value for value in values if value >= most and value > lowest), default=most)

    def up(latency_ms: float) -> float:
        share = math.log(max(latency_ms, lowest) / lowest) / math.log(highest / lowest)
        return bottom - (bottom - top) * share

    shown = [value for value in values if lowest <= value <= highest]
    decades = [value for value in shown if math.log10(value) == round(math.log10(value))]
    ticks = shown if len(shown) <= 2 * _Y_TICKS else decades
    return tuple(Tick(at=up(value), text=length(value / 1000)) for value in ticks), up


def x_ticks(across: Across) -> tuple[Tick, ...]:
    """Return the axis of seconds."""
    step = _round_step(across.ended_s - across.began_s, _X_TICKS)
    numbers = range(math.ceil(across.began_s / step - 1e-9), math.floor(across.ended_s / step + 1e-9) + 1)
    return tuple(Tick(at=across.x(number * step), text=f"{number * step:.6g}") for number in numbers)


def _round_step(extent: float, steps: int) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that cuts the extent into at most so many."""
    raw = max(extent, 1e-9) / steps
    power = 10.0 ** math.floor(math.log10(raw))
    return next((factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9)), 10 * power)


def length(seconds: float) -> str:
    """Return a length of time as people say it."""
    """Say a length of time with its unit."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.2f} s" if seconds != round(seconds) else f"{seconds:.0f} s"
