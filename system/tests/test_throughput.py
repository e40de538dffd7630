"""The benchmark of the whole: it says what it promises, counts honestly, and leaves nothing behind."""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from system.benchmarks import generator, parts
from system.benchmarks.generator import Generator, Record, due_ns
from system.benchmarks.parts import Parts, usable_cores
from system.benchmarks.probes import Disk, MachineCpu
from system.benchmarks.results import Measurement, Observed, Plan, backlog_growth, measurement_of, percentile
from system.benchmarks.sink import Sink
from system.benchmarks.throughput import highest_held, main
from system.telemetry.encoding import encode_request, encode_resource
from system.tests.parts import wait_until

PROCESSES = {"nats-server", "orders", "payments", "provider", "generator", "sink"}
REPOSITORY = Path(__file__).parents[2]
QUIET_DISK = Disk(fsyncs=10, p50_ms=0.2, longest_ms=1.0, stalls_ns=())
MS = 1_000_000


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The benchmark as a process of its own, with its scratch directory in this one."""
    with (directory.parent / "progress").open("wb") as progress:
        return subprocess.Popen(
            [sys.executable, "-m", "system.benchmarks.throughput", *arguments],
            stdout=subprocess.PIPE,
            stderr=progress,
            env={**os.environ, "TMPDIR": str(directory)},
            cwd=REPOSITORY,
        )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where a benchmark shall leave nothing."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


async def test_a_short_run_gives_one_json_document_with_what_is_promised(scratch: Path) -> None:
    """Others read it: fields may join, none leaves."""
    benchmark = start(scratch, "--rate", "200", "--seconds", "2", "--warm-up", "0.5", "--json")
    output, _ = await asyncio.to_thread(benchmark.communicate)
    found = json.loads(output)

    assert benchmark.returncode == 0
    assert 0 < found["orders_per_s"] <= 250
    assert (found["orders"], found["begun"], found["accepted"], found["charges"]) == (500, 500, 500, 500)
    assert (found["refused"], found["missed"], found["unanswered"], found["unsettled"]) == ({}, 0, 0, 0)
    assert 0 < found["accepted_p50_ms"] <= found["accepted_p99_ms"] <= found["accepted_max_ms"]
    assert found["accepted_p50_ms"] < found["settled_p50_ms"] <= found["settled_p99_ms"]
    assert set(found["cpu_us_per_order"]) == PROCESSES
    assert found["cpu_us_per_order"]["orders"] > 0
    assert (found["tracing"], found["spans_lost"]) == (True, 0)
    assert found["spans_per_order"] >= 6
    assert {"fsync_p50_ms", "fsync_longest_ms", "fsync_stalls", "held", "why_not", "late_p99_ms"} <= set(found)
    assert [step["rate_asked_per_s"] for step in found["steps"]] == [200]
    assert list(scratch.iterdir()) == []


async def test_nothing_is_left_of_a_benchmark_that_was_killed(scratch: Path) -> None:
    """No process, no directory, though it had no chance to clean up."""
    benchmark = start(scratch, "--rate", "200", "--seconds", "60")
    itself = psutil.Process(benchmark.pid)

    def is_under_way() -> bool:
        assert benchmark.poll() is None, (scratch.parent / "progress").read_text()
        with contextlib.suppress(psutil.Error):
            return any("system.benchmarks.generator" in each.cmdline() for each in itself.children())
        return False

    await wait_until(is_under_way, within_s=30, what="the load beginning")
    children = itself.children(recursive=True)
    assert len(children) == len(PROCESSES) + 1  # and the guardian

    benchmark.send_signal(signal.SIGKILL)
    await asyncio.to_thread(benchmark.communicate)

    await wait_until(lambda: not any(map(_is_alive, children)), within_s=10, what="every process being gone")
    await wait_until(lambda: list(scratch.iterdir()) == [], within_s=10, what="the scratch directory being gone")


@pytest.mark.parametrize("alone", ["orders", None])
def test_of_two_cores_one_part_has_the_first_to_itself(alone: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first instruction on, so that every thread is there; whoever measures stays where they were."""
    cores = usable_cores()
    two = cores[:2] if len(cores) > 1 else cores * 2  # on one core both have it
    monkeypatch.setattr(parts, "usable_cores", lambda: two)
    with Parts(alone=alone) as started:
        placed = {
            name: os.sched_getaffinity(started.start(name, ("sleep", "60")).process.pid)
            for name in ("orders", "payments")
        }

    everywhere = set(cores)
    assert placed == (
        {"orders": {two[0]}, "payments": {two[1]}} if alone else {"orders": everywhere, "payments": everywhere}
    )
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.parametrize(
    "arguments",
    [("--rate", "0"), ("--rate", "many"), ("--seconds", "0"), ("--connections", "-1"), ("--set", "NAME"), ("--fast",)],
)
def test_wrong_use_is_one_sentence_and_exit_64(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 64
    assert arguments[-1] in capsys.readouterr().err


class Orders(asyncio.Protocol):
    """Stands in for the orders service: it answers the nth request after `answers_s[n]`, the last one for all others.

    In two pieces, as a network may.
    """

    def __init__(self, answers_s: list[float | None], status: bytes = b"202 Accepted") -> None:
        self.is_over = asyncio.Event()
        self._answers_s = answers_s
        self._answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Whom to answer."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The generator is done."""
        self.is_over.set()

    def data_received(self, data: bytes) -> None:
        """One whole request."""
        assert data.count(b"POST /orders") == 1, "one request at a time on a connection"
        after_s = self._answers_s.pop(0) if len(self._answers_s) > 1 else self._answers_s[0]
        if after_s is not None:
            self._transport.write(self._answer)
            asyncio.get_running_loop().call_later(after_s, self._transport.write, b"{}")


@contextlib.asynccontextmanager
async def serving(orders: Orders) -> AsyncIterator[int]:
    """A port where this one answers."""
    server = await asyncio.get_running_loop().create_server(lambda: orders, "127.0.0.1", 0)
    yield int(server.sockets[0].getsockname()[1])
    await orders.is_over.wait()
    server.close()


async def test_an_order_that_finds_no_free_connection_is_still_due_when_it_was_due(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A closed loop would have been silent while the first answer took long, and reported one slow order."""
    async with serving(Orders([0.2, 0.0])) as port:
        load = Generator(port=port, rate_per_s=100, seconds=0.1, connections=1)
        await load.run()

    began_ns = int(capsys.readouterr().out)
    latencies_ms = [
        (answered_ns - due_ns(number, began_ns=began_ns, rate_per_s=100)) / MS
        for number, answered_ns in enumerate(load.record.answered_ns)
    ]
    assert set(load.record.status) == {202}
    assert list(load.record.sent_ns) == sorted(load.record.sent_ns), "in the order in which they were due"
    assert min(latencies_ms) >= 100, "the last one was due at 90 ms and could not be answered before 200"


async def test_what_was_due_and_never_sent_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """One order is unanswered, nine are missed."""
    monkeypatch.setattr(generator, "ANSWERS_WITHIN_S", 0.05)
    async with serving(Orders([None])) as port:
        load = Generator(port=port, rate_per_s=100, seconds=0.1, connections=1)
        await load.run()

    assert [bool(sent_ns) for sent_ns in load.record.sent_ns] == [True] + [False] * 9
    assert set(load.record.status) == {0}


async def test_refusals_are_recorded_by_status() -> None:
    """They are answers too."""
    async with serving(Orders([0.0], status=b"429 Too Many Requests")) as port:
        load = Generator(port=port, rate_per_s=1000, seconds=0.01, connections=1)
        await load.run()

    assert list(load.record.status) == [429] * 10


def observed(*, accepted_ms: int, settled_ms: int, lost: int = 0, disk: Disk = QUIET_DISK) -> Observed:
    """1,000 orders at 1,000/s, all with the same latencies, and so many never settled."""
    began_ns = 1_000 * MS
    due = [due_ns(number, began_ns=began_ns, rate_per_s=1000) for number in range(1000)]
    settled_ns = [each + settled_ms * MS for each in due]
    return Observed(
        record=Record(
            sent_ns=array.array("q", due),
            answered_ns=array.array("q", [each + accepted_ms * MS for each in due]),
            status=array.array("h", [202] * 1000),
        ),
        settled_ns=array.array("q", settled_ns[: 1000 - lost] + [0] * lost),
        began_ns=began_ns,
        since_ns=began_ns,
        until_ns=began_ns + 1000 * MS,
        cpu_s={"orders": 0.05, "generator": 0.01},
        machine=MachineCpu(busy_s=0.5, stolen_s=0.0),
        disk=disk,
        charges=1000,
        spans=8000,
        spans_lost=0,
    )


PLAN = Plan(rate_per_s=1000, seconds=1.0, warm_up_s=0.0, connections=64)


@pytest.mark.parametrize(
    ("seen", "why_not"),
    [
        (observed(accepted_ms=5, settled_ms=40), ()),
        (observed(accepted_ms=20, settled_ms=40), ("accepted p99 20 ms",)),
        (observed(accepted_ms=5, settled_ms=40, lost=1), ("1 not settled in time",)),
    ],
)
def test_a_rate_is_held_only_if_everything_kept_up(seen: Observed, why_not: tuple[str, ...]) -> None:
    """One order left behind is one too many."""
    assert measurement_of(PLAN, seen).why_not == why_not


def test_the_settled_tail_is_also_given_without_those_who_met_a_disk_stall() -> None:
    """The disk is not ours to answer for; both figures are."""
    seen = observed(accepted_ms=5, settled_ms=30)
    seen.settled_ns[500] += 300 * MS
    for number in range(20):
        seen.settled_ns[480 + number] += 300 * MS
    stall_ns = seen.began_ns + 480 * MS, seen.began_ns + 800 * MS

    found = measurement_of(PLAN, dataclasses.replace(seen, disk=dataclasses.replace(QUIET_DISK, stalls_ns=(stall_ns,))))

    assert (found.settled_p99_ms, found.settled_quiet_p99_ms) == (330.0, 30.0)


def test_settling_that_falls_behind_is_a_growing_backlog() -> None:
    """Accepting looks well while every order waits longer than the one before."""
    accepted_ns = [number * MS for number in range(1000)]
    falling_behind_ns = [number * MS * 5 // 4 for number in range(1000)]

    assert backlog_growth(accepted_ns, accepted_ns, 0, 1000 * MS) == 0
    assert backlog_growth(accepted_ns, falling_behind_ns, 0, 1000 * MS) == pytest.approx(133, abs=5)


def test_a_percentile_is_the_nearest_rank() -> None:
    """Exact, and never a value that nobody had."""
    hundred = [float(number) for number in range(1, 101)]

    assert [percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([], 0.99) == 0.0


@pytest.mark.parametrize(
    ("limit", "found", "most_measured"),
    [(5_700, 5_500, 12), (250, 250, 6), (1_000, 1_000, 8), (0, 125, 8)],
)
def test_the_search_finds_the_highest_rate_that_is_held(limit: int, found: int, most_measured: int) -> None:
    """On a grid of 500/s, below the first step by halves."""
    idle = measurement_of(PLAN, observed(accepted_ms=1, settled_ms=2))

    def measured(rate_per_s: int) -> Measurement:
        why_not = () if rate_per_s <= limit else ("too much",)
        return dataclasses.replace(idle, rate_asked_per_s=rate_per_s, why_not=why_not)

    best, steps = highest_held(measured)

    assert best.rate_asked_per_s == found
    assert len(steps) <= most_measured


def test_the_sink_counts_spans_and_those_that_never_came() -> None:
    """By their numbers: of one process 1 to 5 came without 3, of another 1."""
    sink = Sink()
    for name, numbers in (("orders", (1, 2)), ("provider", (1,)), ("orders", (5, 4))):
        spans = [
            b"\x4a" + bytes((19,)) + b"\x0a\x0dtelemetry.seq" + b"\x12\x02\x18" + bytes((number,)) for number in numbers
        ]
        sink.take(encode_request(encode_resource({"service.name": name}), "system", spans))

    report = sink.report()

    assert (report.requests, report.spans, report.spans_lost) == (3, 5, 1)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
