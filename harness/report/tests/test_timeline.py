"""Buckets share a run out without loss, and the picture shows when the storm blew and what it leaves out."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from harness.records import Outcome as Answer
from harness.report.picture import draw
from harness.report.tests.rows import asked, evidence_of, fault, happened, settled
from harness.report.timeline import BUCKETS_MAX, DOTS_MAX, Timeline, read_timeline

if TYPE_CHECKING:
    from harness.records import Row


def timeline_of(*rows: Row) -> Timeline:
    """Return the timeline of rows that hold an operation."""
    with evidence_of(*rows) as evidence:
        timeline = read_timeline(evidence)
    assert timeline is not None
    return timeline


def test_every_operation_and_settlement_lands_in_one_bucket() -> None:
    """Buckets share the run out without loss, and what is in flight returns to nothing."""
    rows: list[Row] = []
    for number in range(500):
        began_ms = number * 10.0
        over_ms = began_ms + 80 if not 1200 <= began_ms + 80 < 4200 else 4200 + number
        answer = Answer.FAILED if number % 50 == 49 else Answer.OK
        rows.append(asked(f"o{number}", at_ms=began_ms, answer=answer))
        if answer is Answer.OK:
            rows.append(settled(f"o{number}", at_ms=over_ms))

    timeline = timeline_of(*rows, fault(from_ms=1200, to_ms=4200))

    assert timeline.bucket_s == 0.05
    assert len(timeline.buckets) <= BUCKETS_MAX
    assert sum(bucket.ok for bucket in timeline.buckets) == 490
    assert sum(bucket.failed for bucket in timeline.buckets) == 10
    assert sum(bucket.settled for bucket in timeline.buckets) == 490
    assert all(bucket.settled == 0 for bucket in timeline.buckets if 1.2 <= bucket.began_s < 4.19)
    assert max(bucket.in_flight for bucket in timeline.buckets) > 250
    assert timeline.buckets[-1].in_flight == 0
    assert len(timeline.dots) == 500


def test_a_fault_window_is_shaded_where_it_was() -> None:
    """The band lies between the same seconds as the axis says."""
    timeline = timeline_of(
        asked("o1", at_ms=0),
        asked("o2", at_ms=9_999),
        fault(from_ms=2_000, to_ms=6_000),
        happened("p", "killed", at_ms=4_000),
    )

    picture = draw(timeline)

    at_s = {tick.text: tick.at for tick in picture.x_ticks}
    (band,) = picture.bands
    (mark,) = picture.marks
    assert band.x == pytest.approx(at_s["2"])
    assert band.x + band.width == pytest.approx(at_s["6"])
    assert mark.x == pytest.approx(at_s["4"])
    assert band.label is not None
    assert band.label.text == "partition payments->nats, 4 s"


def test_names_of_many_faults_do_not_lie_on_one_another() -> None:
    """Labels that would meet take another lane, and those without room are counted."""
    faults = [fault(from_ms=10.0 * number, to_ms=10.0 * number + 5, number=number) for number in range(30)]

    picture = draw(timeline_of(asked("o1", at_ms=0), asked("o2", at_ms=1_000), *faults))

    lanes: dict[float, list[float]] = {}
    for band in picture.bands:
        if band.label is not None:
            lanes.setdefault(band.label.y, []).append(band.label.x)
    assert all(right - left > 100 for xs in lanes.values() for left, right in pairwise(xs))
    nameless = sum(band.label is None for band in picture.bands)
    assert nameless > 0
    assert picture.remarks == (
        f"{nameless} fault windows or process events are drawn without their names, for lack of room",
    )


def test_many_operations_are_drawn_as_percentiles() -> None:
    """Above the bound dots would be a blot."""
    timeline = timeline_of(*(asked(f"o{number}", at_ms=number, took_ms=20) for number in range(DOTS_MAX + 1)))

    picture = draw(timeline)

    assert timeline.dots == ()
    assert [shape.kind for shape in picture.rows[2].shapes] == ["p99", "p50"]
    assert {bucket.p50_ms for bucket in timeline.buckets if bucket.ok} == {20.0}


def test_a_clock_that_is_wrong_does_not_stretch_the_picture() -> None:
    """A service may claim to have settled next year; our own read bounds it."""
    timeline = timeline_of(
        asked("o1", at_ms=0), asked("o2", at_ms=1000), settled("o1", at_ms=1e9, read_ms=2000), settled("o2", at_ms=-1e9)
    )

    assert timeline.ended_s < 2.1
    assert timeline.settled_outside == 2
    assert "2 keys say they settled outside the time shown: a clock was wrong" in draw(timeline).remarks


def test_a_fault_before_the_first_operation_has_negative_seconds() -> None:
    """The origin stays the first operation, the picture begins where the fault does."""
    timeline = timeline_of(asked("o1", at_ms=0), asked("o2", at_ms=1000), fault(from_ms=-500, to_ms=500))

    assert timeline.began_s == pytest.approx(-0.5)
    assert [bucket.ok for bucket in timeline.buckets if bucket.began_s == 0.0] == [1]
