"""Planted bugs are read without being run, and refused with a sentence when something is missing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from harness.commands.mutants import kill_of
from harness.environment.topology import ProcessSpec
from harness.errors import UsageError
from harness.invariants.judgement import Judgement
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED, Ruling, Verdict
from harness.planting import read_bug, read_bugs, start_planted

if TYPE_CHECKING:
    from pathlib import Path

GOOD = '''"""Charges without an idempotency key."""

TARGET = "payments"
EXPERIMENT = "payments-partition"
EXPECTED = ("I2",)

raise RuntimeError("reading must not run this")


def plant() -> None:
    """Break it."""
'''


def written(directory: Path, text: str) -> Path:
    """Write a bug's file."""
    path = directory / "no_key.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_bug_is_read_without_being_run(tmp_path: Path) -> None:
    """The harness must not carry the bug itself."""
    bug = read_bug(written(tmp_path, GOOD))

    assert (bug.name, bug.target, bug.experiment, bug.expected) == ("no_key", "payments", "payments-partition", ("I2",))
    assert bug.says == "Charges without an idempotency key."


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"""Charges without an idempotency key."""', "", "no docstring"),
        ('TARGET = "payments"', "", "does not say TARGET"),
        ('"payments-partition"', "7", "EXPERIMENT must be a string"),
        ('("I2",)', "()", "needs EXPECTED"),
        ('("I2",)', "[1]", "needs EXPECTED"),
        ('("I2",)', "ids()", "plain literal"),
        ("def plant()", "def grow()", "no plant"),
        ("def plant()", "def plant(", "not Python"),
    ],
)
def test_what_is_missing_in_a_bug_is_said(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    """One sentence that names the file."""
    with pytest.raises(UsageError, match=complaint) as refused:
        read_bug(written(tmp_path, GOOD.replace(old, new)))

    assert "no_key.py" in str(refused.value)


def test_a_single_expected_id_may_stand_alone(tmp_path: Path) -> None:
    """EXPECTED = "I2" means the same as ("I2",)."""
    assert read_bug(written(tmp_path, GOOD.replace('("I2",)', '"I2"'))).expected == ("I2",)


def test_a_directory_without_bugs_is_refused(tmp_path: Path) -> None:
    """An empty kill matrix would be all green."""
    with pytest.raises(UsageError, match="holds no planted bug"):
        read_bugs(tmp_path)


def test_only_the_target_is_started_through_the_planting_wrapper(tmp_path: Path) -> None:
    """The other processes are started as ever."""
    bug = read_bug(written(tmp_path, GOOD))
    payments = ProcessSpec(
        name="payments", argv=("python", "-m", "system.payments", "-v"), environment=lambda _: {}, ready_path="/"
    )
    orders = ProcessSpec(
        name="orders", argv=(sys.executable, "-m", "system.orders"), environment=lambda _: {}, ready_path="/"
    )

    argv = start_planted(bug)

    assert argv(payments) == ("python", "-m", "harness.planting", str(bug.path), "system.payments", "-v")
    assert argv(orders) == orders.argv


def test_a_process_that_is_not_a_python_module_cannot_be_planted(tmp_path: Path) -> None:
    """A bug cannot be patched into a binary."""
    bug = read_bug(written(tmp_path, GOOD))
    binary = ProcessSpec(name="payments", argv=("/bin/payments",), environment=lambda _: {}, ready_path="/")

    with pytest.raises(UsageError, match="no bug can be planted"):
        start_planted(bug)(binary)


def judgement(states: dict[str, Ruling], vacuous: tuple[str, ...] = (), died: tuple[str, ...] = ()) -> Judgement:
    """Make a judgement in which each invariant was ruled on so."""
    verdicts = tuple(
        Verdict(invariant=name, name=name, claim="", state=state, examined=1, reason=f"{name} {state}")
        for name, state in states.items()
    )
    return Judgement(
        verdicts=verdicts,
        channels=(),
        faults=(),
        load=None,
        vacuous=(*vacuous, *died),
        died=died,
        outcomes={},
        recovery_s=None,
    )


@pytest.mark.parametrize(
    ("states", "vacuous", "result"),
    [
        ({"I1": HOLDS, "I2": VIOLATED}, (), "caught"),
        ({"I1": VIOLATED, "I2": VIOLATED}, (), "missed"),
        ({"I1": UNKNOWN, "I2": VIOLATED}, (), "caught"),
        ({"I1": HOLDS, "I2": HOLDS}, (), "missed"),
        ({"I1": VIOLATED, "I2": HOLDS}, (), "missed"),
        ({"I1": HOLDS, "I2": UNKNOWN}, (), "unknown"),
        ({"I1": HOLDS, "I2": HOLDS}, ("the fault touched nothing",), "unknown"),
        ({"I1": VIOLATED, "I2": UNKNOWN}, (), "missed"),
    ],
)
def test_a_bug_is_caught_only_by_the_invariant_that_it_expects(
    tmp_path: Path, states: dict[str, Ruling], vacuous: tuple[str, ...], result: str
) -> None:
    """Being seen by an unrelated invariant is not being caught, and not being able to tell is neither."""
    kill = kill_of(read_bug(written(tmp_path, GOOD)), judgement(states, vacuous), "run")

    assert kill.result == result
    assert kill.why


@pytest.mark.parametrize("states", [{"I1": HOLDS, "I2": VIOLATED}, {"I1": VIOLATED, "I2": VIOLATED}])
def test_a_bug_whose_process_died_by_itself_is_not_caught(tmp_path: Path, states: dict[str, Ruling]) -> None:
    """A plant() that breaks the process violates much, and proves nothing of the invariants."""
    kill = kill_of(read_bug(written(tmp_path, GOOD)), judgement(states, died=("payments died by itself: 1",)), "run")

    assert kill.result == "unknown"
    assert kill.why.startswith("payments died by itself: 1: what is violated may be the crash's doing")
