"""A system of our own, with a stand-in for `python -m harness`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.own_system import OwnSystem, OwnSystemError

HARNESS = """
import json, signal, sys, pathlib
run = pathlib.Path(sys.argv[1])
if sys.argv[2] == "check":
    assert (run / "evidence").exists()
    print("the report")
    sys.exit(int(sys.argv[0].endswith("violated.py")))
assert sys.argv[2:] == ["up", "--json"], sys.argv
{before}
signal.signal(signal.SIGINT, lambda *_: None)
(run / "pid").write_text(str(__import__("os").getpid()))
print(json.dumps({{"orders": "http://127.0.0.1:1", "run": str(run), "pid": 1}}), flush=True)
signal.pause()
{after}
(run / "evidence").touch()
"""


def harness(directory: Path, *, name: str = "harness.py", before: str = "", after: str = "") -> tuple[str, ...]:
    """A program that keeps the contract of `python -m harness up --json` and `check`."""
    path = directory / name
    path.write_text(HARNESS.format(before=before, after=after))
    return (sys.executable, str(path), str(directory))


def is_alive(pid: int) -> bool:
    """Whether this process has not ended."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(("name", "exit_code", "verdict"), [("x.py", 0, "HOLDS"), ("violated.py", 1, "VIOLATED")])
def test_a_system_is_started_told_and_judged(tmp_path: Path, name: str, exit_code: int, verdict: str) -> None:
    """SIGINT, its evidence, then the verdict of `check` as it stands."""
    system = OwnSystem.start(harness=harness(tmp_path, name=name))
    assert (system.url, system.run) == ("http://127.0.0.1:1", tmp_path)

    judged = system.judge()

    assert (judged.exit_code, judged.verdict, judged.report) == (exit_code, verdict, "the report\n")
    assert not system.is_running


def test_a_system_that_does_not_start_is_a_sentence(tmp_path: Path) -> None:
    """With its exit code, and what to do."""
    with pytest.raises(OwnSystemError, match=r"ended with code 64 .*`stormproof doctor`"):
        OwnSystem.start(harness=harness(tmp_path, before="sys.exit(64)"))


def test_a_system_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    """Nothing of it is left."""
    program = harness(tmp_path, before='(run / "pid").write_text(str(__import__("os").getpid())); signal.pause()')

    with pytest.raises(OwnSystemError, match="was not ready within 1 s"):
        OwnSystem.start(harness=program, ready_within_s=1)

    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("line", ["not json", "[]", '{"run": "x"}'])
def test_an_answer_that_names_no_address_is_a_sentence(tmp_path: Path, line: str) -> None:
    """The contract is one JSON line with `orders` and `run`."""
    with pytest.raises(OwnSystemError, match="names no orders and run"):
        OwnSystem.start(harness=harness(tmp_path, before=f"print({line!r}, flush=True); signal.pause()"))


def test_a_system_that_ended_by_itself_has_no_verdict(tmp_path: Path) -> None:
    """That is 3, broken, and never 0."""
    system = OwnSystem.start(harness=harness(tmp_path))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    system._child.wait(timeout=10)

    judged = system.judge()

    assert judged.exit_code == 3
    assert "ended by itself with code -9" in judged.report


def test_a_system_that_broke_while_collecting_has_no_verdict(tmp_path: Path) -> None:
    """Its own code 3 says that there is nothing to judge."""
    system = OwnSystem.start(harness=harness(tmp_path, after="sys.exit(3)"))

    judged = system.judge()

    assert judged.exit_code == 3
    assert "left no evidence" in judged.report


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_the_system_is_told_when_its_starter_is_killed(tmp_path: Path) -> None:
    """SIGKILL of Locust leaves no chance to say goodbye; the kernel says it, and the evidence is collected."""
    script = f"""
import sys, time
from loadtests.own_system import OwnSystem
OwnSystem.start(harness={harness(tmp_path)!r})
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
        starter.kill()

    pid, deadline_s = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert (tmp_path / "evidence").exists()
