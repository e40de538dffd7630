"""What is recorded can be read back, and the figures are exact."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest

from harness.collection.history import read_history
from harness.records import Operation, Outcome
from loadtests.orders import order
from loadtests.recording import Recording
from loadtests.summary import CANNOT_SAY, Asked, percentiles, summarize, write_unfinished

MS = 1_000_000


def operation(number: int, *, outcome: Outcome = Outcome.OK, latency_ms: int | None = 5, late_ms: int = 0) -> Operation:
    """An operation that was due at `number` seconds. latency_ms: None for one without an answer."""
    asked, intended_ns = order(1, number), number * 1000 * MS
    return Operation(
        number=number,
        kind="create",
        key=asked.key,
        outcome=outcome,
        intended_ns=intended_ns,
        began_ns=intended_ns + late_ms * MS,
        ended_ns=None if latency_ms is None else intended_ns + latency_ms * MS,
        trace_id=asked.trace_id,
        span_id=asked.span_id,
        status=202 if outcome is Outcome.OK else None,
        detail='a "quoted" détail\n',
        request=asked.body,
    )


def asked_for(slots: int, **more: object) -> Asked:
    """A test of ten seconds with ten users, in which nothing was missed."""
    fields: dict[str, object] = {
        "seed": 1,
        "rate_per_s": slots / 10,
        "duration_s": 10.0,
        "slots": slots,
        "missed_slots": 0,
        "overdue_slots": 0,
        "lag_max_ms": 1.5,
        "users": 10,
        "users_busy_max": 3,
        "drain_s": 0.1,
        "cpu_s": 0.01,
    }
    return Asked(**{**fields, **more})  # type: ignore[arg-type]  # a table of test values


def recorded(*operations: Operation) -> Recording:
    """A recording of these, in memory."""
    recording = Recording()
    for each in operations:
        recording.begin()
        recording.end(each, gave_up_ns=each.intended_ns + 10_000 * MS)
    return recording


def test_the_history_reads_back_as_the_same_operations(tmp_path: Path) -> None:
    """Written by msgspec, read by the harness: every field, every outcome, quotes and line breaks included."""
    path = tmp_path / "operations.jsonl"
    operations = [
        operation(0),
        operation(1, outcome=Outcome.FAILED),
        operation(2, outcome=Outcome.UNKNOWN, latency_ms=None),
    ]
    recording = Recording(path)

    for each in operations:
        recording.end(each, gave_up_ns=0)
    recording.close()

    assert read_history(path) == (operations, 0)


def test_nothing_is_on_disk_before_a_flush_and_all_of_it_after(tmp_path: Path) -> None:
    """Whole lines, so that a killed Locust leaves at most one torn."""
    path = tmp_path / "operations.jsonl"
    recording = Recording(path)
    recording.end(operation(0), gave_up_ns=0)

    assert path.read_bytes() == b""
    recording.flush()
    assert path.read_bytes().count(b"\n") == 1


def test_two_runs_never_mix_in_one_history(tmp_path: Path) -> None:
    """Keys repeat with the seed; a history of two runs would accuse the system."""
    path = tmp_path / "operations.jsonl"
    path.write_text("{}\n")

    with pytest.raises(FileExistsError, match="another run"):
        Recording(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_error_and_loses_nothing() -> None:
    """The lines stay for the next attempt, and closing says so too: a history with holes would accuse the system."""
    recording = Recording(Path("/dev/full"))
    recording.end(operation(0), gave_up_ns=0)

    for attempt in (recording.flush, recording.close):
        with pytest.raises(OSError, match="No space left"):
            attempt()


def test_percentiles_are_exact_and_of_the_nearest_rank() -> None:
    """Locust's own are rounded to two digits."""
    found = percentiles([array("q", [number * MS for number in range(1, 501)]), array("q", [1234 * MS + 567_890])])

    assert (found.count, found.p50, found.p99, found.p99_9, found.max) == (501, 251.0, 496.0, 1234.568, 1234.568)
    assert percentiles([]).max == 0.0


def test_the_summary_adds_up() -> None:
    """Begun is ok, failed and unknown; what got no answer counts with the time it was waited for."""
    recording = recorded(
        operation(0, latency_ms=4),
        operation(1, latency_ms=6),
        operation(2, outcome=Outcome.FAILED, latency_ms=1),
        operation(3, outcome=Outcome.UNKNOWN, latency_ms=None),
    )

    summary = summarize(recording, asked_for(4))

    assert (summary.begun, summary.ok, summary.failed, summary.unknown) == (4, 2, 1, 1)
    assert summary.unanswered == 1
    assert summary.latency_ms.max == 10_000.0
    assert summary.latency_ok_ms.max == 6.0
    assert summary.rate_reached_per_s == 0.4
    assert summary.note == "1 orders got no answer; their latencies are lower bounds"


def test_the_note_says_when_users_were_the_limit() -> None:
    """With the number: how many slots waited, how many never began."""
    summary = summarize(recorded(operation(0)), asked_for(400, overdue_slots=30, missed_slots=12, users_busy_max=10))

    assert summary.note == (
        "users were the limit: 42 of 400 slots came due when no user was free "
        "(12 of them were never begun; 10 of 10 users were busy at most)"
    )


def test_the_note_says_when_locust_was_the_limit() -> None:
    """Free users began late, or its core was full: neither users nor the system under test are to blame for that."""
    stalled = summarize(recorded(operation(0)), asked_for(400, overdue_slots=30, lag_max_ms=70.4))
    saturated = summarize(recorded(operation(0)), asked_for(400, missed_slots=30, cpu_s=9.8))

    assert stalled.note == (
        "30 of 400 slots came due when no user was free (0 of them were never begun; 3 of 10 users were busy at most); "
        "Locust itself was late: it had 0% of a core, and a user that was free began up to 70 ms late; "
        "the latencies include this"
    )
    assert "Locust itself was late: it had 97% of a core" in saturated.note
    assert "users were the limit" not in saturated.note


def test_two_tests_in_one_process_are_one_in_the_summary() -> None:
    """The web page can start a test again; the history is one file, so the figures must be of both."""
    both = asked_for(100, users_busy_max=7).plus(asked_for(300, missed_slots=5))

    assert (both.slots, both.missed_slots, both.duration_s, both.users_busy_max) == (400, 5, 20.0, 7)


def test_the_summary_file_is_unfinished_until_the_end(tmp_path: Path) -> None:
    """Should Locust be killed, the history must not look whole."""
    path = tmp_path / "load.json"

    write_unfinished(path)
    assert json.loads(path.read_text())["begun"] == CANNOT_SAY

    summarize(recorded(operation(0)), asked_for(1)).write(path)
    assert json.loads(path.read_text())["begun"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["load.json"]
