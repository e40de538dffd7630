"""The main job as people run it: one command, a verdict, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest

from harness.collection.broker import BrokerRecords
from harness.environment.tests.small_system import owned_by
from harness.live_run import live_run
from scenarios.command import ROOT, document, left_over, rows, start_stormproof, stormproof
from scenarios.shop import SHOP

if TYPE_CHECKING:
    import subprocess

    from harness.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")

SCHEMA = json.loads((ROOT / "harness" / "report" / "schemas" / "verdict.schema.json").read_text(encoding="utf-8"))


def wait_for_line(process: subprocess.Popen[str], containing: str) -> str:
    """Read the command's progress until a line says this, and return everything read so far."""
    assert process.stderr is not None
    read = []
    for line in process.stderr:
        read.append(line)
        if containing in line:
            return "".join(read)
    raise AssertionError(f"the command ended before it said {containing!r}: {''.join(read)}")


def run_of(runs: Path) -> Path:
    """Return the only run below a directory."""
    (run,) = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
    return run


def test_the_main_job_holds_and_can_be_judged_again_without_a_broker(tmp_path: Path) -> None:
    """A partition that bit, every channel complete, the same verdict twice, nothing left over."""
    finished = stormproof("run", "payments-partition", "--seed", "7", "--json", "--runs-dir", str(tmp_path))
    verdict = document(finished)

    jsonschema.validate(verdict, SCHEMA)
    assert (finished.returncode, verdict["verdict"]) == (0, "HOLDS"), finished.stderr
    (fault,) = rows(verdict, "faults")
    assert fault["verified"]
    assert fault["touched"]
    assert fault["grip"]
    assert all(channel["complete"] for channel in rows(verdict, "channels"))
    run = run_of(tmp_path)
    assert {"plan.json", "evidence.duckdb", "verdict.json", "report.html", "junit.xml", "logs"} <= {
        path.name for path in run.iterdir()
    }
    assert left_over(run.name) == []

    again = stormproof("check", str(run), "--json")

    judged = document(again)
    assert again.returncode == 0
    assert judged["invariants"] == verdict["invariants"]


def test_truncated_evidence_is_unknown_and_says_so(tmp_path: Path) -> None:
    """What cannot be read cannot be green."""
    finished = stormproof("run", "payments-kill", "--seed", "7", "--json", "--runs-dir", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    evidence = run_of(tmp_path) / "evidence.duckdb"
    evidence.write_bytes(evidence.read_bytes()[:5000])

    again = stormproof("check", str(run_of(tmp_path)))

    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "damaged" in again.stderr


def test_sigkill_of_the_harness_in_the_middle_of_a_partition_leaves_nothing(tmp_path: Path) -> None:
    """The guardian ends what the harness no longer can."""
    with start_stormproof("run", "payments-partition", "--runs-dir", str(tmp_path)) as process:
        wait_for_line(process, "partition on payments->nats: in force")
        run = run_of(tmp_path).name
        assert left_over(run), "nothing was running: this test would prove nothing"
        process.kill()

    wait_until_gone(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting nats-server", "environment ready", "in force", "waiting until nothing"])
def test_an_interrupted_run_says_so_and_leaves_nothing(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """At any moment: one sentence, exit code 2, no process, what was collected kept."""
    # A planted bug, so that settling takes long enough to be interrupted.
    slow = ("--mutant", str(ROOT / "scenarios" / "planted" / "projection_stalls.py"))
    with start_stormproof("run", "payments-partition", *slow, "--runs-dir", str(tmp_path)) as process:
        wait_for_line(process, moment)
        process.send_signal(number)
        _stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 2, stderr
    assert "interrupted; there is no verdict" in stderr
    assert "Traceback" not in stderr
    assert left_over(run_of(tmp_path).name) == []
    assert (run_of(tmp_path) / "plan.json").is_file()


def wait_until_gone(run: str) -> None:
    """Wait for the guardian, which sweeps as soon as it notices."""
    deadline_s = time.monotonic() + 10
    while left_over(run) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert left_over(run) == []


def test_up_announces_the_addresses_and_a_stopped_run_can_be_judged(tmp_path: Path) -> None:
    """One line of JSON when everything is ready; SIGINT settles, collects and ends with 0."""
    schema = json.loads((ROOT / "harness" / "report" / "schemas" / "up.schema.json").read_text(encoding="utf-8"))
    with start_stormproof("up", "--json", "--runs-dir", str(tmp_path)) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        jsonschema.validate(ready, schema)
        assert ready["pid"] == process.pid
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["orders"])
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 0, stderr
    assert stdout == ""
    assert left_over(Path(ready["run"]).name) == []
    unjudged = stormproof("check", ready["run"])
    assert unjudged.returncode == 2, "a run in which nothing was asked proves nothing"


def test_a_taken_port_is_one_sentence_and_nothing_is_started(tmp_path: Path) -> None:
    """Somebody else listens where orders should."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        finished = stormproof("up", "--listen", f"orders={address}", "--runs-dir", str(tmp_path / "runs"))

    assert finished.returncode == 3
    assert address in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


async def test_a_cancellation_that_a_library_keeps_to_itself_ends_the_run_all_the_same(
    run_directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may meet the broker's answer, and `wait_for` of Python 3.11 returns that."""
    capture = BrokerRecords.capture_advisories

    async def captured_and_silent(self: BrokerRecords, *, replicas: int = 1) -> None:
        await capture(self, replicas=replicas)
        run = asyncio.current_task()
        assert run is not None
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    monkeypatch.setattr(BrokerRecords, "capture_advisories", captured_and_silent)

    with pytest.raises(asyncio.CancelledError):
        async with live_run(SHOP, run_directory, seed=1):
            pytest.fail("it went on")
    assert owned_by(os.getpid()) == []
