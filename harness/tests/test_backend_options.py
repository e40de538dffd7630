"""The options that choose a backend: what cannot be is wrong use, in one sentence, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cli
from harness.environment.choice import BACKENDS, BackendChoice
from harness.plan import open_plan, read_plan
from scenarios.shop import SHOP

THEIRS = ["--nats-url", "nats://shop:open-sesame@127.0.0.1:4222", "--toxiproxy-url", "http://127.0.0.1:8474"]


@pytest.mark.parametrize("command", [["run", "payments-partition"], ["load", "steady"], ["mutants"], ["up"]])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backend", "cloud"], "invalid choice: 'cloud'"),
        (["--backend", "external"], "--backend external needs --nats-url and --toxiproxy-url"),
        (["--backend", "cluster", *THEIRS], "add --backend external"),
        (["--backend", "external", *THEIRS, "--tls"], "not ours to choose"),
        (["--nats-version", "newest"], "'newest' is no version of nats-server"),
        (
            ["--backend", "external", *THEIRS, "--allow-fault", "flood"],
            "there is no fault 'flood' to allow; there is: ",
        ),
    ],
)
def test_a_backend_that_cannot_be_is_wrong_use(
    command: list[str], options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for every command that starts something; and nothing is left, not even a run directory."""
    runs = tmp_path / "runs"
    assert cli.main([*command, *options, "--runs-dir", str(runs)]) == 64

    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.startswith("stormproof: ")
    assert captured.err.count("\n") == 1
    assert "open-sesame" not in captured.err
    assert not runs.exists()


def test_an_experiment_that_needs_a_cluster_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One server has no peers that it could be cut from."""
    assert cli.main(["run", "leader-isolation", "--runs-dir", str(tmp_path / "runs")]) == 64

    said = capsys.readouterr().err
    assert said == (
        "stormproof: experiment 'leader-isolation' cannot be carried out on embedded: "
        "add --backend cluster or cluster-container\n"
    )


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "external"])
def test_a_plan_keeps_which_backend_it_was(name: str, tmp_path: Path) -> None:
    """In one word for reports, and in the words that say it again."""
    choice = BackendChoice(name=name, nats_version="2.12.4", postgres=True, tls=True)
    open_plan(SHOP, experiment="up", seed=1, choice=choice).write(tmp_path)

    plan = read_plan(tmp_path)

    assert plan.backend == name
    assert plan.backend_words == choice.words()


def test_a_plan_keeps_no_secret(tmp_path: Path) -> None:
    """Whoever repeats it brings the password along."""
    choice = BackendChoice(name="external", nats_url=THEIRS[1], toxiproxy_url=THEIRS[3])
    open_plan(SHOP, experiment="up", seed=1, choice=choice).write(tmp_path)

    written = (tmp_path / "plan.json").read_text(encoding="utf-8")

    assert "sesame" not in written
    assert json.loads(written)["backend_words"][2:4] == ["--nats-url", "nats://127.0.0.1:4222"]


def test_a_plan_from_before_there_were_variants_can_be_read(tmp_path: Path) -> None:
    """An old run can be judged again."""
    open_plan(SHOP, experiment="up", seed=1, choice=BackendChoice()).write(tmp_path)
    document = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    del document["backend_words"]
    (tmp_path / "plan.json").write_text(json.dumps(document), encoding="utf-8")

    assert read_plan(tmp_path).backend_words == []
