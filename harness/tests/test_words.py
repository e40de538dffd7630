"""Words that cannot rot: tables in README and ARCHITECTURE say what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness import cli
from harness.planting import read_bugs
from harness.tests.test_layers import ALLOWED, FOLDERS
from scenarios.shop import SHOP
from system import topology

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def table(text: str, header: str) -> list[tuple[str, ...]]:
    """Return the cells of the Markdown table whose first header is this."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")))
    return rows


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, object]]]:
    """Return what `stormproof list --json` prints."""
    assert cli.main(["list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_readme_lists_the_experiments_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Name and summary, word for word."""
    assert table(README, "experiment") == [(each["name"], each["summary"]) for each in listed(capsys)["experiments"]]


def test_readme_lists_the_invariants_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Id, name and claim, word for word."""
    assert table(README, "invariant") == [
        (each["id"], each["name"], each["claim"]) for each in listed(capsys)["invariants"]
    ]


def test_readme_lists_the_planted_bugs_and_who_catches_them() -> None:
    """The kill matrix, as it must come out."""
    assert table(README, "planted bug") == [(bug.name, " ".join(bug.expected)) for bug in read_bugs(SHOP.planted_bugs)]


def test_readme_lists_the_commands_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of `--help`, and no other."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = re.findall(r"^    (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)

    assert [row[0].split()[1] for row in table(README, "command")] == known


def test_readme_lists_the_exit_codes_there_are() -> None:
    """Five, and what each means."""
    codes = [int(row[0]) for row in table(README, "exit code")]

    assert codes == [0, 1, cli.EXIT_INTERRUPTED, cli.EXIT_BROKEN, cli.EXIT_USAGE]


def test_architecture_lists_the_folders_and_what_they_may_import() -> None:
    """The rule that the tests check is the rule that is written down."""
    for folder, _holds, may_import in table(ARCHITECTURE, "folder"):
        names = set(FOLDERS) if may_import == "all" else set(may_import.replace("`", "").split())
        assert names == ALLOWED[folder.rstrip("/")]


def test_architecture_lists_the_subjects_of_the_system() -> None:
    """Subject, stream and durable consumers as the system creates them."""
    source = Path(topology.__file__).read_text(encoding="utf-8")
    for subject, stream, _message_id, consumers in table(ARCHITECTURE, "subject"):
        for name in (subject, stream, *consumers.replace("`", "").split(", ")):
            assert f'"{name}"' in source, f"{name} is in ARCHITECTURE.md and not in system/topology.py"


def test_every_decision_that_a_comment_cites_is_written_down() -> None:
    """`(D7)` in the code leads somewhere."""
    written = set(re.findall(r"^\*\*(D\d+)\.", ARCHITECTURE, flags=re.MULTILINE))
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            cited = set(re.findall(r"\((D\d+)\)", path.read_text(encoding="utf-8")))
            assert cited <= written, f"{path.relative_to(ROOT)} cites {sorted(cited - written)}"


def test_readme_shows_a_verdict_as_it_is_printed_today() -> None:
    """The example names every invariant and channel there is, and ends with the verdict."""
    example = README.split("```text\n")[1].split("\n```")[0]

    for invariant in SHOP.invariants:
        assert re.search(rf"^[A-Z]+ +{invariant.id} +{invariant.name} +\d+", example, flags=re.MULTILINE), invariant.id
    for channel in ("operations", "spans", "messages", "consumers", "advisories", "ledger", "states"):
        assert re.search(rf"^{channel} +\d+ +\d+  yes$", example, flags=re.MULTILINE), channel
    assert re.search(r"^VIOLATED  I2 ", example, flags=re.MULTILINE)
    assert example.splitlines()[-1] == "VIOLATED"
