"""Bad input ends with one clear sentence and the designed exit code, never with a traceback."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.errors import EvidenceDamagedError, UsageError
from harness.report.tests.rows import plan

ROOT = Path(__file__).resolve().parents[2]


def stormproof(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "EXPERIMENT"),
        (["run", "no-such-storm"], "there is no experiment 'no-such-storm'; there is: payments-partition"),
        (["run", "payments-partition", "--seed", "minus one"], "'minus one' is not a seed"),
        (["run", "payments-partition", "--seed", "-1"], "--seed"),
        (["run", "payments-partition", "--seed", "99999999999999999999"], "is not a seed"),
        (["run", "payments-partition", "--mutant", "/nowhere.py"], "/nowhere.py cannot be read"),
        (["load", "no-such-load"], "there is no load profile 'no-such-load'; there is: steady"),
        (["load", "steady", "--rate", "0"], "above 0"),
        (["load", "steady", "--rate", "nan"], "above 0"),
        (["load", "steady", "--duration", "inf"], "above 0"),
        (["check", "no-such-run"], "no directory 'no-such-run'"),
        (["check", "harness"], "is not a run directory"),
        (["mutants", "--from", "no-such-directory"], "is not a directory"),
        (["up", "--listen", "orders:8080"], "is not ROLE=HOST:PORT"),
        (["up", "--listen", "moon=127.0.0.1:8080"], "there is no process 'moon'"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_64(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was wrong, and what there is instead."""
    assert cli.main(arguments) == 64

    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.startswith("stormproof: ")
    assert captured.err.count("\n") == 1


def test_latest_before_any_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to judge yet."""
    assert cli.main(["check", "latest", "--runs-dir", str(tmp_path)]) == 64
    assert "there is no run in" in capsys.readouterr().err


def test_a_run_that_never_wrote_its_evidence_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was killed: nobody can tell, so exit code 2, with one sentence."""
    plan().write(tmp_path)

    assert cli.main(["check", str(tmp_path)]) == 2
    assert "evidence.duckdb does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_plan_is_unknown(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the plan nobody knows what was judged."""
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")

    assert cli.main(["check", str(tmp_path)]) == 2
    assert "plan.json is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("system", None), ("program", None), ("seed", "x"), ("rate_per_s", "a"), ("mutant", 3)]
)
def test_a_plan_that_somebody_changed_is_unknown(
    tmp_path: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judged as if it were whole, it would say HOLDS of a run that was never planned so."""
    plan().write(tmp_path)
    changed = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) | {name: value}
    (tmp_path / "plan.json").write_text(json.dumps(changed), encoding="utf-8")

    assert cli.main(["check", str(tmp_path)]) == 2
    assert f"plan.json is missing or damaged ({name} is {value!r})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tool = 3", "something else than a table above 'stormproof'"),
        ('[tool]\nstormproof = "shop"', "something else than a table above 'system'"),
        ("[tool.stormproof]\nsystem = 3", "says system = 3"),
        ("[tool", "is not valid TOML"),
        ("# \udcff", "is not valid TOML"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_wrong_use(
    tmp_path: Path, text: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence about the file."""
    (tmp_path / "pyproject.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.chdir(tmp_path)

    assert cli.main(["list"]) == 64
    assert complaint in capsys.readouterr().err


def test_a_system_that_ends_the_process_makes_nothing_green(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library that calls exit(0) where a setting is missing: while it is imported, or later in a command."""
    (tmp_path / "pyproject.toml").write_text('[tool.stormproof]\nsystem = "gives_up:SYSTEM"\n', encoding="utf-8")
    (tmp_path / "gives_up.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    finished = stormproof("list", cwd=tmp_path)
    assert (finished.returncode, "cannot be imported" in finished.stderr) == (64, True)

    async def gives_up(_options: object) -> int:
        raise SystemExit(0)

    monkeypatch.setattr(importlib.import_module("harness.commands.list"), "execute", gives_up)
    assert cli.main(["list"]) == 3
    assert "the system's own code ended the process (exit 0): nothing was judged" in capsys.readouterr().err


def test_what_cannot_be_carried_out_is_refused_before_anything_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The second experiment needs a cluster; the first would have been carried out in vain."""
    assert cli.main(["run", "payments-partition", "leader-isolation"]) == 64

    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "experiment 'leader-isolation' cannot be carried out on embedded" in told


def test_a_directory_without_a_configured_system_says_what_to_add(tmp_path: Path) -> None:
    """A stranger's first call."""
    finished = stormproof("list", cwd=tmp_path)

    assert finished.returncode == 64
    assert "[tool.stormproof]" in finished.stderr


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere.module:THING", "cannot be imported"),
        ("json:dumps", "is a function, not a SystemUnderTest"),
        ("json:absent", "cannot be imported"),
        ("", "cannot be imported"),
    ],
)
def test_a_configured_system_that_is_none_says_so(tmp_path: Path, name: str, complaint: str) -> None:
    """The configured name leads nowhere, or to something else."""
    (tmp_path / "pyproject.toml").write_text(f'[tool.stormproof]\nsystem = "{name}"\n', encoding="utf-8")

    finished = stormproof("list", cwd=tmp_path)

    assert finished.returncode == 64
    assert complaint in finished.stderr


def test_an_unwritable_runs_directory_breaks_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the directory should be."""
    (tmp_path / "runs").write_text("", encoding="utf-8")

    assert cli.main(["run", "payments-partition", "--runs-dir", str(tmp_path / "runs")]) == 3
    assert "no run directory can be made" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_not_a_violation() -> None:
    """`stormproof list | true` must not end with 1, which means VIOLATED."""
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "list"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=60)

    assert process.returncode == 3


class Breaking:
    """A command that raises what it was given."""

    def __init__(self, error: BaseException) -> None:
        """Raise this."""
        self._error = error

    async def execute(self, _options: object) -> int:
        """Raise it."""
        raise self._error


@pytest.mark.parametrize(
    ("error", "exit_code", "says"),
    [
        (UsageError("no such word"), 64, "no such word"),
        (
            ExceptionGroup("tasks", [OSError("noise"), ExceptionGroup("more", [UsageError("no such word")])]),
            64,
            "no such",
        ),
        (ExceptionGroup("tasks", [OSError(28, "No space left on device")]), 3, "No space left on device"),
        (EvidenceDamagedError("torn"), 2, "torn"),
        (ZeroDivisionError("of nothing"), 3, "the harness itself broke (ZeroDivisionError: of nothing)"),
        (ExceptionGroup("tasks", [ZeroDivisionError("of nothing")]), 3, "the harness itself broke"),
        (asyncio.CancelledError(), 2, "interrupted"),
    ],
)
def test_whatever_escapes_a_command_is_a_sentence_and_never_exit_code_1(
    error: BaseException,
    exit_code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1 means VIOLATED; a task group's wrapping must not hide whose fault it was, on any Python."""
    monkeypatch.setattr(importlib, "import_module", lambda _name: Breaking(error))

    assert cli.main(["list"]) == exit_code
    assert says in capsys.readouterr().err
