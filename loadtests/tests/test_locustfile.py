"""The locustfile in a real Locust, always in a process of its own: importing Locust patches the one it is in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.collection.history import read_history
from harness.records import Operation, Outcome
from loadtests.orders import order
from loadtests.tests.answering_server import Manner, answering

LOCUSTFILE = Path(__file__).resolve().parent.parent / "locustfile.py"
SEED = 11
RUN_WITHIN_S = 40.0
MS = 1_000_000

MANNERS = {17: Manner.FAIL, 23: Manner.HANG, 31: Manner.REFUSE, 43: Manner.BREAK_OFF}
OUTCOMES = {
    Manner.ACCEPT: (Outcome.OK, 202),
    Manner.FAIL: (Outcome.UNKNOWN, 503),
    Manner.REFUSE: (Outcome.FAILED, 422),
    Manner.HANG: (Outcome.UNKNOWN, None),
    Manner.BREAK_OFF: (Outcome.UNKNOWN, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A Locust that has ended, and what it left."""

    exit_code: int
    log: str
    operations: list[Operation]
    load: dict[str, object]


def started(directory: Path, *arguments: str, operations: bool = True) -> subprocess.Popen[str]:
    """Start Locust with the locustfile, its history in this directory."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("STORMPROOF_", "LOCUST_"))}
    if operations:
        variables["STORMPROOF_OPERATIONS"] = str(directory / "operations.jsonl")
    return subprocess.Popen(
        (sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
    )


async def said_by(locust: subprocess.Popen[str]) -> str:
    """Wait for its end and return what it said."""
    try:
        log, _ = await asyncio.to_thread(locust.communicate, timeout=RUN_WITHIN_S)
    except BaseException:
        locust.kill()
        locust.communicate()
        raise
    return log


async def ended(locust: subprocess.Popen[str], directory: Path) -> Ended:
    """Wait for its end and read what it left."""
    log = await said_by(locust)
    path, load = directory / "operations.jsonl", directory / "load.json"
    operations, torn = read_history(path) if path.is_file() else ([], 0)
    assert torn == 0
    return Ended(
        exit_code=locust.returncode,
        log=log,
        operations=operations,
        load=json.loads(load.read_text()) if load.is_file() else {},
    )


async def run(directory: Path, *arguments: str, operations: bool = True) -> Ended:
    """Run Locust to its end."""
    return await ended(started(directory, *arguments, operations=operations), directory)


async def test_the_history_is_what_the_server_saw_one_by_one(tmp_path: Path) -> None:
    """Accepted, refused, failed, hung and broken off: each order once, as it was sent, with the outcome it had."""
    async with answering(lambda number: MANNERS.get(number % 60, Manner.ACCEPT)) as server:
        locust = await run(
            tmp_path, "--host", server.url, "--rate", "100", "-u", "80", "-t", "3s",
            "--seed", str(SEED), "--answer-within", "1",
        )  # fmt: skip

    assert locust.exit_code == 1, locust.log  # Locust's own word for "some requests failed"
    assert [each.number for each in sorted(locust.operations, key=lambda each: each.number)] == list(range(300))
    saw = {each.key: each for each in server.seen}
    assert len(saw) == len(server.seen) == len(locust.operations)
    for operation in locust.operations:
        asked, seen = order(SEED, operation.number), saw[operation.key]
        assert operation.key == asked.key
        assert operation.request == seen.body == asked.body
        assert seen.traceparent == f"00-{operation.trace_id}-{operation.span_id:016x}-01"
        assert (operation.outcome, operation.status) == OUTCOMES[seen.manner]
        assert (operation.ended_ns is None) == (seen.manner in {Manner.HANG, Manner.BREAK_OFF})
        assert operation.intended_ns <= operation.began_ns
        assert (operation.detail == "") == (seen.manner is Manner.ACCEPT)

    first_ns = min(each.intended_ns for each in locust.operations)
    assert sorted(each.intended_ns - first_ns for each in locust.operations) == [
        number * 10 * MS for number in range(300)
    ]
    counted = Counter(each.outcome for each in locust.operations)
    assert locust.load["begun"] == locust.load["slots"] == 300
    assert {outcome: locust.load[outcome] for outcome in Outcome} == counted
    assert locust.load["missed_slots"] == 0
    assert locust.load["unanswered"] == 10


async def test_a_stall_of_the_server_shows_as_latency_and_not_as_missing_requests(tmp_path: Path) -> None:
    """The server stands still for one second at 100 orders a second: about a hundred orders wait for it."""
    async with answering(stall_at=100, stall_s=1.0) as server:
        locust = await run(tmp_path, "--host", server.url, "--rate", "100", "-u", "150", "-t", "3s")

    assert locust.exit_code == 0, locust.log
    assert len(server.seen) == len(locust.operations) == 300
    latencies_ms = [((each.ended_ns or 0) - each.intended_ns) / MS for each in locust.operations]
    assert 950 <= max(latencies_ms) <= 2000
    assert 85 <= sum(latency_ms >= 100 for latency_ms in latencies_ms) <= 200
    assert 1000 * 0.95 <= locust.load["latency_ms"]["max"] <= 2000  # type: ignore[index]  # JSON of our own


async def test_too_few_users_are_said_and_missed_slots_are_counted(tmp_path: Path) -> None:
    """Three users and a server that never answers: three orders at a time, everything else was due and not begun."""
    async with answering(lambda _number: Manner.HANG) as server:
        locust = await run(
            tmp_path, "--host", server.url, "--rate", "50", "-u", "3", "-t", "2s", "--answer-within", "0.7"
        )

    assert (locust.load["slots"], locust.load["users"], locust.load["users_busy_max"]) == (100, 3, 3)
    assert locust.load["begun"] == len(locust.operations) == len(server.seen) <= 9
    assert locust.load["missed_slots"] == 100 - len(locust.operations)
    assert "3 of 3 users were busy" in str(locust.load["note"])
    assert "3 of 3 users were busy" in locust.log


async def test_what_is_in_flight_at_the_stop_is_drained(tmp_path: Path) -> None:
    """Locust would drop these answers. The server stands still across the end of the run, then answers."""
    async with answering(stall_at=50, stall_s=1.5) as server:
        locust = await run(tmp_path, "--host", server.url, "--rate", "50", "-u", "80", "-t", "2s")

    assert {each.outcome for each in locust.operations} == {Outcome.OK}
    assert len(server.seen) == len(locust.operations) == 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_asking_and_what_is_never_answered_ends_as_unknown(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The drain has a bound; then users are killed, and each order they had begun still has its record."""
    async with answering(lambda order_number: Manner.HANG if order_number >= 40 else Manner.ACCEPT) as server:
        process = started(tmp_path, "--host", server.url, "--rate", "100", "-u", "50", "-t", "60s", "-s", "1")
        await server.wait_seen(60)
        process.send_signal(number)
        locust = await ended(process, tmp_path)

    assert {each.key for each in locust.operations} == {each.key for each in server.seen}
    assert locust.load["begun"] == len(locust.operations) == len(server.seen)
    assert Counter(each.outcome for each in locust.operations) == {
        Outcome.OK: 40,
        Outcome.UNKNOWN: len(server.seen) - 40,
    }
    assert {each.ended_ns for each in locust.operations if each.outcome is Outcome.UNKNOWN} == {None}


async def test_a_refused_connection_certainly_failed(tmp_path: Path) -> None:
    """Nothing was sent, so nothing can have happened."""
    async with answering() as server:
        address = server.url

    locust = await run(tmp_path, "--host", address, "--rate", "50", "-u", "5", "-t", "1s")

    assert len(locust.operations) == 50
    assert {(each.outcome, each.status) for each in locust.operations} == {(Outcome.FAILED, None)}


async def test_a_given_host_is_driven_and_nothing_is_judged(tmp_path: Path) -> None:
    """And that is said."""
    async with answering() as server:
        locust = await run(
            tmp_path, "--host", server.url, "--rate", "20", "-u", "2", "--duration", "0.5", operations=False
        )

    assert locust.exit_code == 0
    assert len(server.seen) == 10
    assert "NOTHING IS JUDGED" in locust.log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("--host", "http://127.0.0.1:9", "--processes", "2"), 64, "distributed Locust"),
        (("--host", "http://127.0.0.1:9", "--master"), 64, "distributed Locust"),
        ((), 64, "STORMPROOF_OPERATIONS is set without --host"),
        (("--host", "127.0.0.1:9"), 64, "is not an http:// address"),
        (("--host", "http://nowhere.invalid:9"), 64, "--host http://nowhere.invalid:9: "),
        (("--host", "http://127.0.0.1:9", "--rate", "0"), 2, "0 is not a number above 0"),
        (("--host", "http://127.0.0.1:9", "--rate", "nan"), 2, "nan is not a number above 0"),
    ],
)
async def test_wrong_use_is_one_clear_sentence(
    tmp_path: Path, arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    """And nothing is asked of anybody."""
    locust = await run(tmp_path, "-t", "1s", *arguments)

    assert said in locust.log
    assert locust.exit_code == exit_code
    assert "Traceback" not in locust.log


async def test_a_history_of_another_run_is_left_alone(tmp_path: Path) -> None:
    """Two runs in one history would accuse the system of what it did not do."""
    (tmp_path / "operations.jsonl").write_text("{}\n")

    process = started(tmp_path, "--host", "http://127.0.0.1:9", "-t", "1s")
    log = await said_by(process)

    assert process.returncode == 64
    assert "holds the history of another run" in log
    assert (tmp_path / "operations.jsonl").read_text() == "{}\n"
