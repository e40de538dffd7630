"""The timeline of a run as a picture: what was asked, what settled, how long it took, and where the storm blew.

`read_timeline` asks the evidence and gets at most `BUCKETS_MAX` buckets back, however many operations there were;
`draw` turns them into coordinates, which the template writes down as SVG. Both are pure functions.

Times are seconds since the first operation began. An operation is in flight from its beginning until its key settled;
one that certainly failed, or that left nothing behind, until it was known to be over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import FaultWindow, Outcome, ProcessEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.evidence.store import Evidence

    _Upward = Callable[[float], float]

BUCKETS_MAX = 120
DOTS_MAX = 1_000
"""Up to so many answered operations are drawn one by one, more as percentiles of their bucket."""

MARKS_MAX = 40
"""At most so many fault windows, and as many process events, stand in the picture; the tables know them all."""

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_BUCKET_NS_MIN = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What happened in one slice of the run.

    p50_ms, p99_ms: of the accepted operations that began in it. in_flight: when the slice ended.
    """

    began_s: float
    ok: int = 0
    failed: int = 0
    unknown: int = 0
    settled: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One answered operation."""

    began_s: float
    latency_ms: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One fault window. healed_s: None when it never healed."""

    label: str
    began_s: float
    healed_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened to a process while operations were under way."""

    label: str
    at_s: float
    is_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The run in numbers.

    origin_ns: when the first operation began. dots: empty when there are more than `DOTS_MAX`.
    unanswered: operations without an end. states: keys whose final state was read.
    settled_outside: keys that claim to have settled outside the time shown, by a clock that was wrong.
    bands_left_out, marks_left_out: how many more there were than the picture holds.
    """

    origin_ns: int
    bucket_s: float
    buckets: tuple[Bucket, ...]
    dots: tuple[Dot, ...]
    bands: tuple[Band, ...]
    bands_left_out: int
    marks: tuple[Mark, ...]
    marks_left_out: int
    unanswered: int
    states: int
    settled_outside: int

    @property
    def began_s(self) -> float:
        """Left edge."""
        return self.buckets[0].began_s

    @property
    def ended_s(self) -> float:
        """Right edge."""
        return self.buckets[-1].began_s + self.bucket_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slices:
    """How the time shown is cut into buckets."""

    origin_ns: int
    first_ns: int
    width_ns: int
    count: int

    @property
    def last_ns(self) -> int:
        return self.first_ns + self.width_ns * self.count


def read_timeline(evidence: Evidence) -> Timeline | None:
    """Return the timeline; None when nothing was placed."""
    faults = sorted(evidence.select(FaultWindow), key=lambda window: (window.began_ns, window.number))
    slices = _slices(evidence, faults)
    if slices is None:
        return None
    marks = _marks(evidence, slices)
    answered = evidence.count("SELECT count(*) FROM operations WHERE ended_ns IS NOT NULL")
    return Timeline(
        origin_ns=slices.origin_ns,
        bucket_s=slices.width_ns / _NS_PER_S,
        buckets=_buckets(evidence, slices),
        dots=_dots(evidence, slices) if answered <= DOTS_MAX else (),
        bands=tuple(
            Band(
                label=f"{window.name} {window.target}",
                began_s=(window.began_ns - slices.origin_ns) / _NS_PER_S,
                healed_s=None if window.healed_ns is None else (window.healed_ns - slices.origin_ns) / _NS_PER_S,
            )
            for window in faults[:MARKS_MAX]
        ),
        bands_left_out=max(0, len(faults) - MARKS_MAX),
        marks=marks[:MARKS_MAX],
        marks_left_out=max(0, len(marks) - MARKS_MAX),
        unanswered=evidence.count("SELECT count(*) FROM operations WHERE ended_ns IS NULL"),
        states=evidence.count("SELECT count(*) FROM states"),
        settled_outside=evidence.count(
            "SELECT count(*) FROM states WHERE settled_ns < $1 OR settled_ns >= $2", [slices.first_ns, slices.last_ns]
        ),
    )


def _slices(evidence: Evidence, faults: Sequence[FaultWindow]) -> _Slices | None:
    ((origin_ns, asked_until_ns),) = evidence.query(
        "SELECT min(began_ns), max(greatest(began_ns, coalesce(ended_ns, began_ns))) FROM operations"
    )
    if origin_ns is None:
        return None
    # A skewed service clock may claim any settled_ns; the read, by our own clock, bounds it.
    settled_until_ns = evidence.count("SELECT max(least(settled_ns, read_ns)) FROM states WHERE settled_ns IS NOT NULL")
    from_ns = min([origin_ns, *(window.began_ns for window in faults)])
    until_ns = max([asked_until_ns, settled_until_ns, *(window.healed_ns or window.began_ns for window in faults)])
    width_ns = _BUCKET_NS_MIN
    while True:
        first_ns = origin_ns - math.ceil((origin_ns - from_ns) / width_ns) * width_ns
        count = (until_ns - first_ns) // width_ns + 1
        if count <= BUCKETS_MAX:
            return _Slices(origin_ns=origin_ns, first_ns=first_ns, width_ns=width_ns, count=count)
        width_ns = _rounder(width_ns)


def _rounder(width_ns: int) -> int:
    """Return the next width of 1, 2, 5, 10, 20, 50..."""
    leading = width_ns // 10 ** (len(str(width_ns)) - 1)
    return width_ns * 5 // 2 if leading == 2 else width_ns * 2  # noqa: PLR2004 - of 1, 2, 5 only 2 is not doubled


def _buckets(evidence: Evidence, slices: _Slices) -> tuple[Bucket, ...]:
    cut = [slices.first_ns, slices.width_ns]
    begun: dict[tuple[int, str], int] = {
        (bucket, outcome): count
        for bucket, outcome, count in evidence.query(
            "SELECT (began_ns - $1) // $2 AS bucket, outcome, count(*) FROM operations GROUP BY bucket, outcome", cut
        )
    }
    settled: dict[int, int] = dict(
        evidence.query(
            "SELECT (settled_ns - $1) // $2 AS bucket, count(*) FROM states WHERE settled_ns >= $1 GROUP BY bucket", cut
        )
    )
    latencies: dict[int, tuple[float, float]] = {
        bucket: (p50_ns / _NS_PER_MS, p99_ns / _NS_PER_MS)
        for bucket, (p50_ns, p99_ns) in evidence.query(
            """
            SELECT (began_ns - $1) // $2 AS bucket, quantile_disc(ended_ns - intended_ns, [0.5, 0.99])
            FROM operations WHERE outcome = 'ok' AND ended_ns IS NOT NULL GROUP BY bucket
            """,
            cut,
        )
    }
    # Both ends are cut to the time shown, so that a wrong clock cannot take an operation out before it came in.
    changes: dict[int, int] = dict(
        evidence.query(
            """
            WITH flights AS (
                SELECT o.began_ns, CASE
                    WHEN s.settled_ns IS NOT NULL THEN s.settled_ns
                    WHEN o.outcome = 'failed' THEN o.ended_ns
                    WHEN o.outcome = 'unknown' AND s.state = 'absent' THEN coalesce(o.ended_ns, s.read_ns)
                END AS over_ns
                FROM operations o LEFT JOIN states s USING (key)
            ), changes AS (
                SELECT began_ns AS at_ns, 1 AS change FROM flights
                UNION ALL
                SELECT greatest(over_ns, began_ns), -1 FROM flights WHERE over_ns IS NOT NULL
            )
            SELECT (at_ns - $1) // $2 AS bucket, sum(change)::BIGINT FROM changes GROUP BY bucket
            """,
            cut,
        )
    )
    buckets = []
    in_flight = 0
    for number in range(slices.count):
        in_flight += changes.get(number, 0)
        p50_ms, p99_ms = latencies.get(number, (None, None))
        buckets.append(
            Bucket(
                began_s=(slices.first_ns - slices.origin_ns + number * slices.width_ns) / _NS_PER_S,
                ok=begun.get((number, Outcome.OK), 0),
                failed=begun.get((number, Outcome.FAILED), 0),
                unknown=begun.get((number, Outcome.UNKNOWN), 0),
                settled=settled.get(number, 0),
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                in_flight=in_flight,
            )
        )
    return tuple(buckets)


def _dots(evidence: Evidence, slices: _Slices) -> tuple[Dot, ...]:
    rows = evidence.query(
        """
        SELECT began_ns, ended_ns - intended_ns, outcome FROM operations
        WHERE ended_ns IS NOT NULL ORDER BY began_ns, number
        """
    )
    return tuple(
        Dot(
            began_s=(began_ns - slices.origin_ns) / _NS_PER_S,
            latency_ms=latency_ns / _NS_PER_MS,
            outcome=Outcome(outcome),
        )
        for began_ns, latency_ns, outcome in rows
    )


def _marks(evidence: Evidence, slices: _Slices) -> tuple[Mark, ...]:
    events = evidence.select(
        ProcessEvent,
        """
        at_ns >= $1 AND at_ns < $2
        AND (event IN ('killed', 'ready') OR (event = 'exited' AND detail LIKE 'unexpected%')) ORDER BY at_ns, pid
        """,
        [slices.first_ns, slices.last_ns],
    )
    return tuple(
        Mark(
            label=f"{event.process} {'died' if event.event == 'exited' else event.event}",
            at_s=(event.at_ns - slices.origin_ns) / _NS_PER_S,
            is_end=event.event != "ready",
        )
        for event in events
    )


# The picture: numbers become coordinates. Sizes are SVG units, one CSS pixel at full width.

_WIDTH = 1080.0
_LEFT = 60.0
_RIGHT = 1068.0
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
_LATENCY_MS_MIN = 0.01
_Y_TICKS = 3
_X_TICKS = 10
_NO_STATES = "no final state was read, so nothing is known to have settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One value on an axis, and where it stands."""

    at: float
    text: str


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


@dataclass(frozen=True, slots=True)
class _Across:
    """From seconds to the horizontal."""

    began_s: float
    ended_s: float

    def x(self, at_s: float) -> float:
        share = (at_s - self.began_s) / (self.ended_s - self.began_s)
        return _LEFT + min(1.0, max(0.0, share)) * (_RIGHT - _LEFT)


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
    across = _Across(timeline.began_s, timeline.ended_s)
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
        left=_LEFT,
        right=_RIGHT,
        top=lanes.height,
        bottom=bottom,
        rows=tuple(rows),
        bands=bands,
        marks=marks,
        x_ticks=_x_ticks(across),
        columns=tuple(_column(bucket, timeline, across) for bucket in timeline.buckets),
        has_dots=bool(timeline.dots),
        summary=_summary(timeline),
        remarks=_remarks(timeline, bands, marks),
    )


def _begun(timeline: Timeline, across: _Across, top: float, bottom: float) -> Row:
    ticks, up = _upward([bucket.ok + bucket.failed + bucket.unknown for bucket in timeline.buckets], top, bottom)
    floors = [0] * len(timeline.buckets)
    shapes = []
    for outcome in Outcome:
        counts = [_begun_with(bucket, outcome) for bucket in timeline.buckets]
        if any(counts):
            shapes.append(Shape(kind=outcome.value, path=_bars(timeline, across, up, floors, counts)))
        floors = [floor + count for floor, count in zip(floors, counts, strict=True)]
    title = f"operations begun, per {_length(timeline.bucket_s)}"
    return Row(title=title, top=top, bottom=bottom, ticks=ticks, shapes=tuple(shapes))


def _settled(timeline: Timeline, across: _Across, top: float, bottom: float) -> Row:
    title = f"operations settled, per {_length(timeline.bucket_s)}"
    counts = [bucket.settled for bucket in timeline.buckets]
    if not any(counts):
        missing = "nothing settled" if timeline.states else _NO_STATES
        return Row(title=title, top=top, bottom=bottom, missing=missing)
    ticks, up = _upward(counts, top, bottom)
    path = _bars(timeline, across, up, [0] * len(counts), counts)
    return Row(title=title, top=top, bottom=bottom, ticks=ticks, shapes=(Shape(kind="settled", path=path),))


def _latency(timeline: Timeline, across: _Across, top: float, bottom: float) -> Row:
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
    ticks, up = _upward_log(drawn_ms, top, bottom)
    if timeline.dots:
        shapes = _scatter(timeline.dots, across, up)
    else:
        middles = [across.x(bucket.began_s + timeline.bucket_s / 2) for bucket in timeline.buckets]
        shapes = (
            Shape(kind="p99", path=_line(middles, [bucket.p99_ms for bucket in timeline.buckets], up)),
            Shape(kind="p50", path=_line(middles, [bucket.p50_ms for bucket in timeline.buckets], up)),
        )
    return Row(title=title, top=top, bottom=bottom, ticks=ticks, shapes=shapes)


def _in_flight(timeline: Timeline, across: _Across, top: float, bottom: float) -> Row:
    title = "operations in flight: begun and not settled"
    if not timeline.states:
        return Row(title=title, top=top, bottom=bottom, missing=_NO_STATES)
    ticks, up = _upward([bucket.in_flight for bucket in timeline.buckets], top, bottom)
    path = f"M{_LEFT:.1f} {bottom:.1f}" + "".join(
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


def _bars(timeline: Timeline, across: _Across, up: _Upward, floors: Sequence[int], counts: Sequence[int]) -> str:
    parts = []
    for bucket, floor, count in zip(timeline.buckets, floors, counts, strict=True):
        if count:
            left, right = across.x(bucket.began_s), across.x(bucket.began_s + timeline.bucket_s)
            width = right - left - (1.0 if right - left >= _BAR_GAP_FROM else 0.0)
            # One failure among thousands is still seen: no bar is lower than the least height.
            upper = min(up(floor + count), up(floor) - _BAR_HEIGHT_MIN)
            parts.append(f"M{left:.1f} {up(floor):.1f}V{upper:.1f}h{width:.1f}V{up(floor):.1f}z")
    return "".join(parts)


def _line(xs: Sequence[float], values: Sequence[float | None], up: _Upward) -> str:
    parts = []
    is_drawing = False
    for x, value in zip(xs, values, strict=True):
        if value is not None:
            # The stub of no length makes a lonely point visible under a round line cap.
            parts.append(f"L{x:.1f} {up(value):.1f}" if is_drawing else f"M{x:.1f} {up(value):.1f}h0")
        is_drawing = value is not None
    return "".join(parts)


def _scatter(dots: Iterable[Dot], across: _Across, up: _Upward) -> tuple[Shape, ...]:
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


def _upward(counts: Sequence[int], top: float, bottom: float) -> tuple[tuple[Tick, ...], _Upward]:
    step = max(1.0, _round_step(max(counts), _Y_TICKS))
    highest = step * max(1, math.ceil(max(counts) / step))

    def up(count: float) -> float:
        return bottom - (bottom - top) * count / highest

    values = (round(step * number) for number in range(round(highest / step) + 1))
    return tuple(Tick(at=up(value), text=f"{value:,}") for value in values), up


def _upward_log(drawn_ms: Sequence[float], top: float, bottom: float) -> tuple[tuple[Tick, ...], _Upward]:
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
    return tuple(Tick(at=up(value), text=_length(value / 1000)) for value in ticks), up


def _x_ticks(across: _Across) -> tuple[Tick, ...]:
    step = _round_step(across.ended_s - across.began_s, _X_TICKS)
    numbers = range(math.ceil(across.began_s / step - 1e-9), math.floor(across.ended_s / step + 1e-9) + 1)
    return tuple(Tick(at=across.x(number * step), text=f"{number * step:.6g}") for number in numbers)


def _round_step(extent: float, steps: int) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that cuts the extent into at most so many."""
    raw = max(extent, 1e-9) / steps
    power = 10.0 ** math.floor(math.log10(raw))
    return next((factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9)), 10 * power)


def _band(band: Band, across: _Across, lanes: _Lanes) -> DrawnBand:
    left = across.x(band.began_s)
    right = across.x(across.ended_s if band.healed_s is None else band.healed_s)
    how_long = "never healed" if band.healed_s is None else _length(band.healed_s - band.began_s)
    text = f"{_short(band.label)}, {how_long}"
    text_width = len(text) * _CHARACTER_WIDTH + 10
    if text_width <= right - left:
        label_x, anchor, taken = left + 5, "start", (left, right)
    elif right + text_width <= _RIGHT or left - text_width < 0:
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


def _mark(mark: Mark, across: _Across, lanes: _Lanes) -> DrawnMark:
    x = across.x(mark.at_s)
    text = _short(mark.label)
    text_width = len(text) * _CHARACTER_WIDTH + 14
    if x + text_width <= _RIGHT:
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


def _column(bucket: Bucket, timeline: Timeline, across: _Across) -> Column:
    x = across.x(bucket.began_s)
    begun = bucket.ok + bucket.failed + bucket.unknown
    told = [
        f"{bucket.began_s:.6g} to {bucket.began_s + timeline.bucket_s:.6g} s",
        f"begun {begun} (ok {bucket.ok}, failed {bucket.failed}, unknown {bucket.unknown})",
        f"settled {bucket.settled}",
    ]
    if bucket.p50_ms is not None and bucket.p99_ms is not None:
        told.append(f"latency p50 {_length(bucket.p50_ms / 1000)}, p99 {_length(bucket.p99_ms / 1000)}")
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


def _length(seconds: float) -> str:
    """Say a length of time with its unit."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.2f} s" if seconds != round(seconds) else f"{seconds:.0f} s"
