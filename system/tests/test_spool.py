"""The span spool: whole after SIGKILL at any moment, and no danger on a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from system.telemetry.spool import NO_SLOT, TAIL_BYTES, SpanSpool, SpoolError, slot_label
from system.tests.parts import wait_until
from system.tests.test_database_sqlite import files_limited, small_disk  # noqa: F401 - a fixture
from system.tests.test_telemetry import read_frames, read_open

_ENDLESS = """
import itertools, pathlib, sys
from opentelemetry.trace import SpanKind
from system.metrics import Metrics
from system.settings import TelemetrySettings
from system.telemetry import SpanTemplate, Telemetry

settings = TelemetrySettings(service_name="t", endpoint=None, spool_directory=pathlib.Path(sys.argv[1]))
tracer = Telemetry(settings, Metrics()).tracer
template = SpanTemplate("work", SpanKind.INTERNAL, {}, ("number",))
for number in itertools.count():
    tracer.begin(template).end(number)
"""


def test_a_process_killed_in_the_middle_leaves_whole_spans_without_a_gap(tmp_path: Path) -> None:
    """P10: each span that was started has ended here, or is in a slot, or both."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    try:
        (spans,) = _wait_for_spool(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    ended = [Span.FromString(frame) for frame in read_frames(spans)[1:]]
    started, _, still_open = read_open(spans.with_suffix(".open"))
    numbers = {attribute.value.int_value for span in ended for attribute in span.attributes if "seq" in attribute.key}
    assert numbers | still_open.keys() == set(range(1, max(numbers | still_open.keys()) + 1))
    assert len(numbers | still_open.keys()) - started in (0, 1)


def _wait_for_spool(directory: Path) -> list[Path]:
    def has_moved_often() -> bool:
        return any(path.stat().st_size > 20 * TAIL_BYTES for path in directory.glob("*.spans"))

    asyncio.run(wait_until(has_moved_often, within_s=20.0, what="many spans"))
    return list(directory.glob("*.spans"))


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(
        st.integers(1, 400) | st.integers(TAIL_BYTES - 16, TAIL_BYTES) | st.integers(1, 3 * TAIL_BYTES), max_size=30
    )
)
def test_frames_of_any_size_can_be_read_at_any_moment(sizes: list[int]) -> None:
    """Also those that fill the tail to the last byte, and those that are larger than it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "t-1.spans"
        spool = SpanSpool(path.parent, service="t", instance="1", resource=b"resource")
        frames = [b"resource"]

        for size in sizes:
            frames.append(bytes((size % 251,)) * size)
            assert spool.ended(NO_SLOT, frames[-1])
            assert read_frames(path) == frames
        spool.close()

        assert read_frames(path) == frames
        assert path.stat().st_size == sum(4 + len(frame) for frame in frames)


def test_a_process_killed_between_any_two_writes_leaves_whole_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each state of the two files on the way of frames into the first one is read as the same frames."""
    spool = SpanSpool(tmp_path, service="t", instance="1", resource=b"resource")
    path, frames = tmp_path / "t-1.spans", [b"resource"]
    while spool._at + 1_004 <= spool._end:
        frames.append(bytes((len(frames),)) * 1_000)
        spool.ended(NO_SLOT, frames[-1])
    seen = []

    class Watched:
        """The numbers of the second file; both files are read after each change."""

        def __init__(self, numbers: memoryview[int]) -> None:
            self._numbers = numbers

        def __getitem__(self, index: int) -> int:
            return self._numbers[index]

        def __setitem__(self, index: int, number: int) -> None:
            self._numbers[index] = number
            seen.append(read_frames(path))

        def release(self) -> None:
            """As a memoryview."""
            self._numbers.release()

    monkeypatch.setattr(spool, "_numbers", Watched(spool._numbers))
    spool.ended(NO_SLOT, b"one more" * 200)
    spool.close()

    assert seen[:3] == [frames] * 3
    assert all(found in (frames, [*frames, b"one more" * 200]) for found in seen)
    assert read_frames(path) == [*frames, b"one more" * 200]


def test_a_file_that_may_not_grow_costs_spans_and_not_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What fits is whole; what does not is said once, and spans are kept again when there is room again."""
    caplog.set_level("INFO")
    spool = SpanSpool(tmp_path, service="t", instance="1", resource=b"resource")
    frame = bytes(range(200)) * 100
    with files_limited(2 * TAIL_BYTES):
        kept = [spool.ended(NO_SLOT, frame) for _ in range(60)]
    is_kept_again = spool.ended(NO_SLOT, b"at last")
    spool.close()

    count = kept.count(True)
    assert kept == [True] * count + [False] * (60 - count)
    assert count == 9  # three at a time, and the last three still stand in the tail
    assert is_kept_again
    assert read_frames(tmp_path / "t-1.spans") == [b"resource", *[frame] * count, b"at last"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_full_disk_costs_spans_which_stay_in_their_slots(small_disk: Path) -> None:  # noqa: F811 - the fixture
    """Not SIGBUS, which is what a mapped page without a place on disk would be."""
    spool = SpanSpool(small_disk, service="t", instance="1", resource=b"resource")
    frame = bytes(range(200)) * 100
    kept = []
    for number in range(1, 41):
        slot = spool.started(number, 1, b"t" * 16, b"s" * 8, bytes(8), slot_label("work", 1))
        kept.append(spool.ended(slot, frame))
    _, ended, still_open = read_open(small_disk / "t-1.open")
    spool.close()

    assert 10 < kept.count(True) == ended < 40
    assert len(read_frames(small_disk / "t-1.spans")) == 1 + ended
    assert still_open.keys() == {number for number, is_kept in enumerate(kept, 1) if not is_kept}


def test_a_disk_that_is_full_from_the_start_is_told_in_one_sentence(small_disk: Path) -> None:  # noqa: F811 - the fixture
    """The process ends with it instead of dying of a signal later."""
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))

    with pytest.raises(SpoolError, match=r"cannot keep spans in .*: No space left on device; set SPAN_SPOOL_DIR"):
        SpanSpool(small_disk, service="t", instance="1", resource=b"resource")


def test_where_the_file_system_cannot_take_place_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some cannot, and macOS has no call for it: the file says the same."""

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str((fd, offset, length)))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    spool = SpanSpool(tmp_path, service="t", instance="1", resource=b"resource")

    assert spool.ended(NO_SLOT, b"span")
    assert read_frames(tmp_path / "t-1.spans") == [b"resource", b"span"]
    assert (tmp_path / "t-1.open").stat().st_blocks * 512 >= 64 + 4096 * 128 + TAIL_BYTES
    spool.close()
