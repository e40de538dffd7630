"""The timeline as a picture: numbers become coordinates, which the template writes down as SVG.

`draw` is a pure function and asks no evidence; what it cannot draw, for lack of room, its remarks say.
Sizes are SVG units, one CSS pixel at full width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import Outcome
from harness.report.axes import LEFT, RIGHT, Across, Tick, length, upward, upward_log, x_ticks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.report.axes import Upward
    from harness.report.timeline import Band, Bucket, Dot, Mark, Timeline

_WIDTH = 1080.0
_LANE_HEIGHT = 19.0
_LANES_MAX = 8
_TITLE_HEIGHT = 34.0
_X_AXIS_HEIGHT = 44.0
_CHARACTER_WIDTH = 6.4
_LABEL_MAX = 60
_BAR_GAP_FROM = 4.0
_BAR_HEIGHT_MIN = 2.5
_CROSS = 3.0
_DIAMOND = 4.0
_NO_STATES = "no final state was read, so nothing is known to have settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One path of a row. kind: its class in the style sheet, which gives it colour and pattern."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One chart of the picture. missing: why there is nothing to draw, empty when there is something."""

    title: str
    top: float
    bottom: float
    ticks: tuple[Tick, ...] = ()
    shapes: tuple[Shape, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The name of a fault window or process event above the charts. anchor: as SVG says it."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBand:
    """A fault window: a shade through all rows. label, bar_y: None when there is no lane left for its name."""

    x: float
    width: float
    bar_y: float | None
    label: Label | None
    is_healed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnMark:
    """A process event: a line through all rows."""

    x: float
    y: float | None
    label: Label | None
    is_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One bucket across all rows, with what a pointer over it is told."""

    x: float
    width: float
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The whole timeline in coordinates. summary: the picture in a sentence, for those who cannot see it."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    rows: tuple[Row, ...]
    bands: tuple[DrawnBand, ...]
    marks: tuple[DrawnMark, ...]
    x_ticks: tuple[Tick, ...]
    columns: tuple[Column, ...]
    has_dots: bool
    summary: str
    remarks: tuple[str, ...]


class _Lanes:
    """Keeps labels from lying on one another: each takes the first lane with room."""

    def __init__(self) -> None:
        self._taken_to: list[float] = []

    @property
    def height(self) -> float:
        return len(self._taken_to) * _LANE_HEIGHT

    def take(self, from_x: float, to_x: float) -> float | None:
        """Return the top of a lane that is free from here to there; None when all are taken. Ask from left to right."""
        for number, taken_to in enumerate(self._taken_to):
            if taken_to < from_x:
                self._taken_to[number] = to_x
                return number * _LANE_HEIGHT
        if len(self._taken_to) >= _LANES_MAX:
            return None
        self._taken_to.append(to_x)
        return (len(self._taken_to) - 1) * _LANE_HEIGHT


def draw(timeline: Timeline) -> Picture:
    """Lay the timeline out."""
    across = Across(timeline.began_s, timeline.ended_s)
    lanes = _Lanes()
    bands = tuple(_band(band, across, lanes) for band in timeline.bands)
    marks = tuple(_mark(mark, across, lanes) for mark in timeline.marks)
    rows: list[Row] = []
    bottom = lanes.height
    for height, row in ((84.0, _begun), (84.0, _settled), (130.0, _latency), (84.0, _in_flight)):
        top = bottom + _TITLE_HEIGHT
        bottom = top + height
        rows.append(row(timeline, across, top, bottom))
    return Picture(
        width=_WIDTH,
        height=bottom + _X_AXIS_HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=lanes.height,
        bottom=bottom,
        rows=tuple(rows),
        bands=bands,
        marks=marks,
        x_ticks=x_ticks(across),
        columns=tuple(_column(bucket, timeline, across) for bucket in timeline.buckets),
        has_dots=bool(timeline.dots),
        summary=_summary(timeline),
        remarks=_remarks(timeline, bands, marks),
    )


def _begun(timeline: Timeline, across: Across, top: float, bottom: float) -> Row:
    ticks, up = upward([bucket.ok + bucket.failed + bucket.unknown for bucket in timeline.buckets], top, bottom)
    floors = [0] * len(timeline.buckets)
    shapes = []
    for outcome in Outcome:
        counts = [_begun_with(bucket, outcome) for bucket in timeline.buckets]
        if any(counts):
            shapes.append(Shape(kind=outcome.value, path=_bars(timeline, across, up, floors, counts)))
        floors = [floor + count for floor, count in zip(floors, counts, strict=True)]
    title = f"operations begun, per {length(timeline.bucket_s)}"
    return Row(title=title, top=top, bottom=bottom, ticks=ticks, shapes=tuple(shapes))


def _settled(timeline: Timeline, across: Across, top: float, bottom: float) -> Row:
    title = f"operations settled, per {length(timeline.bucket_s)}"
    counts = [bucket.settled for bucket in timeline.buckets]
    if not any(counts):
        missing = "nothing settled" if timeline.states else _NO_STATES
        return Row(title=title, top=top, bottom=bottom, missing=missing)
    ticks, up = upward(counts, top, bottom)
    path = _bars(timeline, across, up, [0] * len(counts), counts)
    return Row(title=title, top=top, bottom=bottom, ticks=ticks, shapes=(Shape(kind="settled", path=path),))


def _latency(timeline: Timeline, across: Across, top: float, bottom: float) -> Row:
    accepted = "intended start to answer (log scale)"
    title = f"latency of each operation, {accepted}" if timeline.dots else f"latency of accepted operations, {accepted}"
    drawn_ms = [dot.latency_ms for dot in timeline.dots] or [
        latency_ms
        for bucket in timeline.buckets
        for latency_ms in (bucket.p50_ms, bucket.p99_ms)
        if latency_ms is not None
    ]
    if not drawn_ms:
        return Row(title=title, top=top, bottom=bottom, missing="no operation was answered")
    ticks, up = upward_log(drawn_ms, top, bottom)
    if timeline.dots:
        shapes = _scatter(timeline.dots, across, up)
    else:
        middles = [across.x(bucket.began_s + timeline.bucket_s / 2) for bucket in timeline.buckets]
        shapes = (
            Shape(kind="p99", path=_line(middles, [bucket.p99_ms for bucket in timeline.buckets], up)),
            Shape(kind="p50", path=_line(middles, [bucket.p50_ms for bucket in timeline.buckets], up)),
        )
    return Row(title=title, top=top, bottom=bottom, ticks=ticks, shapes=shapes)


def _in_flight(timeline: Timeline, across: Across, top: float, bottom: float) -> Row:
    title = "operations in flight: begun and not settled"
    if not timeline.states:
        return Row(title=title, top=top, bottom=bottom, missing=_NO_STATES)
    ticks, up = upward([bucket.in_flight for bucket in timeline.buckets], top, bottom)
    path = f"M{LEFT:.1f} {bottom:.1f}" + "".join(
        f"L{across.x(bucket.began_s + timeline.bucket_s):.1f} {up(bucket.in_flight):.1f}" for bucket in timeline.buckets
    )
    return Row(
        title=title,
        top=top,
        bottom=bottom,
        ticks=ticks,
        shapes=(
            Shape(kind="in-flight-area", path=f"{path}V{bottom:.1f}z"),
            Shape(kind="in-flight", path=path),
        ),
    )


def _begun_with(bucket: Bucket, outcome: Outcome) -> int:
    return {Outcome.OK: bucket.ok, Outcome.FAILED: bucket.failed, Outcome.UNKNOWN: bucket.unknown}[outcome]


def _bars(timeline: Timeline, across: Across, up: Upward, floors: Sequence[int], counts: Sequence[int]) -> str:
    parts = []
    for bucket, floor, count in zip(timeline.buckets, floors, counts, strict=True):
        if count:
            left, right = across.x(bucket.began_s), across.x(bucket.began_s + timeline.bucket_s)
            width = right - left - (1.0 if right - left >= _BAR_GAP_FROM else 0.0)
            # One failure among thousands is still seen: no bar is lower than the least height.
            upper = min(up(floor + count), up(floor) - _BAR_HEIGHT_MIN)
            parts.append(f"M{left:.1f} {up(floor):.1f}V{upper:.1f}h{width:.1f}V{up(floor):.1f}z")
    return "".join(parts)


def _line(xs: Sequence[float], values: Sequence[float | None], up: Upward) -> str:
    parts = []
    is_drawing = False
    for x, value in zip(xs, values, strict=True):
        if value is not None:
            # The stub of no length makes a lonely point visible under a round line cap.
            parts.append(f"L{x:.1f} {up(value):.1f}" if is_drawing else f"M{x:.1f} {up(value):.1f}h0")
        is_drawing = value is not None
    return "".join(parts)


def _scatter(dots: Iterable[Dot], across: Across, up: Upward) -> tuple[Shape, ...]:
    parts: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for dot in dots:
        x, y = across.x(dot.began_s), up(dot.latency_ms)
        if dot.outcome is Outcome.OK:
            parts[dot.outcome].append(f"M{x:.1f} {y:.1f}h0")
        elif dot.outcome is Outcome.FAILED:
            parts[dot.outcome].append(f"M{x - _CROSS:.1f} {y - _CROSS:.1f}l6 6m0-6l-6 6")
        else:
            parts[dot.outcome].append(f"M{x:.1f} {y - _DIAMOND:.1f}l4 4-4 4-4-4z")
    return tuple(Shape(kind=f"dot-{outcome.value}", path="".join(each)) for outcome, each in parts.items() if each)


def _band(band: Band, across: Across, lanes: _Lanes) -> DrawnBand:
    left = across.x(band.began_s)
    right = across.x(across.ended_s if band.healed_s is None else band.healed_s)
    how_long = "never healed" if band.healed_s is None else length(band.healed_s - band.began_s)
    text = f"{_short(band.label)}, {how_long}"
    text_width = len(text) * _CHARACTER_WIDTH + 10
    if text_width <= right - left:
        label_x, anchor, taken = left + 5, "start", (left, right)
    elif right + text_width <= RIGHT or left - text_width < 0:
        label_x, anchor, taken = right + 5, "start", (left, right + text_width)
    else:
        label_x, anchor, taken = left - 5, "end", (left - text_width, right)
    y = lanes.take(*taken)
    return DrawnBand(
        x=left,
        width=max(1.0, right - left),
        bar_y=y,
        label=None if y is None else Label(text=text, x=label_x, y=y + _LANE_HEIGHT - 6, anchor=anchor),
        is_healed=band.healed_s is not None,
    )


def _mark(mark: Mark, across: Across, lanes: _Lanes) -> DrawnMark:
    x = across.x(mark.at_s)
    text = _short(mark.label)
    text_width = len(text) * _CHARACTER_WIDTH + 14
    if x + text_width <= RIGHT:
        label_x, anchor, taken = x + 8, "start", (x - 6, x + text_width)
    else:
        label_x, anchor, taken = x - 8, "end", (x - text_width, x + 6)
    y = lanes.take(*taken)
    return DrawnMark(
        x=x,
        y=y,
        label=None if y is None else Label(text=text, x=label_x, y=y + _LANE_HEIGHT - 6, anchor=anchor),
        is_end=mark.is_end,
    )


def _column(bucket: Bucket, timeline: Timeline, across: Across) -> Column:
    x = across.x(bucket.began_s)
    begun = bucket.ok + bucket.failed + bucket.unknown
    told = [
        f"{bucket.began_s:.6g} to {bucket.began_s + timeline.bucket_s:.6g} s",
        f"begun {begun} (ok {bucket.ok}, failed {bucket.failed}, unknown {bucket.unknown})",
        f"settled {bucket.settled}",
    ]
    if bucket.p50_ms is not None and bucket.p99_ms is not None:
        told.append(f"latency p50 {length(bucket.p50_ms / 1000)}, p99 {length(bucket.p99_ms / 1000)}")
    if timeline.states:
        told.append(f"in flight {bucket.in_flight}")
    return Column(x=x, width=across.x(bucket.began_s + timeline.bucket_s) - x, told="\n".join(told))


def _summary(timeline: Timeline) -> str:
    begun = sum(bucket.ok + bucket.failed + bucket.unknown for bucket in timeline.buckets)
    settled = sum(bucket.settled for bucket in timeline.buckets)
    most = max(bucket.in_flight for bucket in timeline.buckets)
    in_flight = f", at most {most:,} in flight at once" if timeline.states else ""
    return f"{begun:,} operations begun, {settled:,} settled{in_flight}, {len(timeline.bands)} fault windows"


def _remarks(timeline: Timeline, bands: Sequence[DrawnBand], marks: Sequence[DrawnMark]) -> tuple[str, ...]:
    """Say what the picture leaves out; it must not look whole when it is not."""
    nameless = sum(band.label is None for band in bands) + sum(mark.label is None for mark in marks)
    remarks = (
        (timeline.unanswered, "operations were never answered and have no latency"),
        (timeline.settled_outside, "keys say they settled outside the time shown: a clock was wrong"),
        (timeline.bands_left_out, "more fault windows are not drawn"),
        (timeline.marks_left_out, "more process events are not drawn"),
        (nameless, "fault windows or process events are drawn without their names, for lack of room"),
    )
    return tuple(f"{count:,} {what}" for count, what in remarks if count)


def _short(text: str) -> str:
    return text if len(text) <= _LABEL_MAX else text[: _LABEL_MAX - 1] + "…"
