"""README's examples of the fixtures, word for word, in an empty project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.tests.conftest import Project
from harness.tests.test_words import table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
HEADING = "## Fixtures for your own tests\n"
SECTION = README.partition(HEADING)[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", SECTION, flags=re.MULTILINE | re.DOTALL)
STARTS_A_SYSTEM = {"live_run", "shop"}
"""These have an example further up, which the scenarios are."""


def names_in(example: str) -> list[str]:
    """The names of an example's tests."""
    return re.findall(r"^(?:async )?def (test_\w+)", example, flags=re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: names_in(example)[0])
def test_an_example_of_readme_passes_in_an_empty_project(example: str, project: Project) -> None:
    """Whoever copies it gets a green test, and nothing is left of it."""
    result = project.test(example)

    result.assert_outcomes(passed=len(names_in(example)))
    assert project.leftovers() == []


def test_every_part_has_an_example_with_a_loop_and_one_without() -> None:
    """A fixture that can be had in only one kind of test would not be useful without the rest."""
    asked = re.findall(r"^(async )?def test_\w+\((.*?)\)", "\n".join(EXAMPLES), flags=re.MULTILINE)
    for (name,) in {row[:1] for row in table(SECTION, "fixture")} - {(each,) for each in STARTS_A_SYSTEM}:
        kinds = {kind for kind, arguments in asked if name in arguments.split(", ")}
        # The client of JetStream has no other form.
        assert kinds == ({"async "} if name == "jetstream" else {"async ", ""}), name


def test_readme_lists_the_fixtures_and_options_there_are(project: Project) -> None:
    """As pytest itself lists them."""
    fixtures = project.run("--fixtures", "-q").stdout.str()
    options = project.run("--help").stdout.str()

    for name, *_gives in table(SECTION, "fixture"):
        assert re.search(rf"^{name} --", fixtures, flags=re.MULTILINE), name
    ours = options.partition("\nstormproof:\n")[2].partition("\n\n")[0]
    assert [row[0].split()[0] for row in table(SECTION, "option")] == re.findall(r"^  (--[\w-]+)", ours, re.MULTILINE)
