"""The machine contract: what `--json` prints validates against the JSON Schemas in the repository."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from harness import cli
from harness.commands import mutants
from harness.commands import run as run_command
from harness.errors import EnvironmentFailedError, UsageError
from harness.invariants.judgement import judge
from harness.invariants.verdict import VIOLATED, Ruling, Verdict
from harness.planting import PlantedBug
from harness.report.tests.rows import evidence_of, plan
from harness.run import Outcome
from harness.runs import RunDirectory
from harness.system_under_test import Experiment

SCHEMAS = Path(__file__).resolve().parents[1] / "report" / "schemas"


def validate(document: object, name: str) -> None:
    """Raise when the document is not what the schema promises."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_a_command_prints_one_document_that_its_schema_knows(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the document, the whole document, and nothing else."""
    assert cli.main([command, "--json"]) == 0

    validate(json.loads(capsys.readouterr().out), command)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.name)
def test_every_schema_is_a_schema(path: Path) -> None:
    """A schema with a typing error would accept everything."""
    schema = json.loads(path.read_text(encoding="utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"], "a contract without required fields promises nothing"


def judged(path: Path, experiment: str) -> Outcome:
    """Return the outcome of a run that saw nothing."""
    judgement = judge(evidence_of(), ())
    return Outcome(plan=plan(experiment), directory=RunDirectory(id="1", path=path), judgement=judgement, timings={})


def test_several_runs_are_one_document_of_their_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them is what one run would have printed."""

    async def carried_out(_system: object, experiment: Experiment, *_others: object) -> Outcome:
        return judged(tmp_path, experiment.name)

    monkeypatch.setattr(run_command, "carry_out_experiment", carried_out)
    names = ["payments-partition", "payments-kill"]

    exit_code = cli.main(["run", *names, "--json"])

    document = json.loads(capsys.readouterr().out)
    validate(document, "verdicts")
    assert document["exit_code"] == exit_code
    assert [run["experiment"] for run in document["runs"]] == names
    for run in document["runs"]:
        validate(run, "verdict")


@pytest.mark.parametrize(("states", "exit_code"), [((), 3), ((VIOLATED,), 1)])
def test_a_run_that_breaks_keeps_the_verdicts_before_it(
    states: tuple[Ruling, ...],
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """VIOLATED stays VIOLATED, whatever breaks afterwards."""

    async def carried_out(_system: object, experiment: Experiment, *_others: object) -> Outcome:
        if experiment.name == "payments-kill":
            raise EnvironmentFailedError("payments does not start")
        outcome = judged(tmp_path, experiment.name)
        verdicts = tuple(
            Verdict(invariant="I1", name="n", claim="c", state=state, examined=1, reason="r") for state in states
        )
        return replace(outcome, judgement=replace(outcome.judgement, verdicts=verdicts))

    monkeypatch.setattr(run_command, "carry_out_experiment", carried_out)

    assert cli.main(["run", "payments-partition", "payments-kill", "orders-partition", "--json"]) == exit_code

    told = capsys.readouterr()
    assert json.loads(told.out)["experiment"] == "payments-partition"
    assert "stormproof: payments-kill: payments does not start" in told.err


def test_up_announces_whatever_roles_a_system_has() -> None:
    """A stranger's has neither orders nor a provider."""
    known = {"nats": "nats://h:1", "nats_credentials": "/f", "toxiproxy": "http://h:2", "otlp": "http://h:3"}
    validate({**known, "run": "/r", "pid": 1, "warehouse": "http://h:4"}, "up")

    with pytest.raises(jsonschema.ValidationError):
        validate({**known, "run": "/r", "pid": 1, "warehouse": 4}, "up")


def test_what_a_verdict_must_hold_is_the_same_in_both_schemas() -> None:
    """The list stands twice, so that either file can be used by itself."""
    one, several = (
        json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")) for name in ("verdict", "verdicts")
    )

    assert several["properties"]["runs"]["items"]["required"] == one["required"]


def broken_on(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the run of the first shipped bug break, and all others see nothing."""
    runs: list[str] = []

    async def carried_out(_system: object, experiment: Experiment, *others: object) -> Outcome:
        bug = others[-1]
        assert isinstance(bug, PlantedBug)
        runs.append(bug.name)
        if len(runs) == 1:
            raise error
        return judged(tmp_path, experiment.name)

    monkeypatch.setattr(mutants, "carry_out_experiment", carried_out)


@pytest.mark.parametrize(
    "error",
    [
        EnvironmentFailedError("payments does not start"),
        ExceptionGroup("tasks", [OSError("noise"), EnvironmentFailedError("payments does not start")]),
    ],
    ids=["alone", "out-of-a-task-group"],
)
def test_a_run_that_breaks_is_an_unknown_row_of_the_kill_matrix(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other rows are there all the same, and the document is what its schema says."""
    broken_on(error, monkeypatch, tmp_path)

    # Nothing was judged in the others: they are missed.
    assert cli.main(["mutants", "--json"]) == 1

    document = json.loads(capsys.readouterr().out)
    validate(document, "mutants")
    first, *others = document["mutants"]
    assert (first["result"], first["why"], first["run"]) == ("unknown", "payments does not start", "")
    assert others
    assert all(kill["run"] == str(tmp_path) for kill in others)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(UsageError("no such thing"), 64), (ExceptionGroup("tasks", [UsageError("no such thing")]), 64), (OSError(), 3)],
)
def test_what_every_bug_would_break_on_ends_the_kill_matrix_at_once(
    error: Exception,
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong use is not an unknown bug, and neither is what was not raised on purpose."""
    broken_on(error, monkeypatch, tmp_path)

    assert cli.main(["mutants", "--json"]) == exit_code
    assert capsys.readouterr().out == ""
