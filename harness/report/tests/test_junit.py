"""`junit.xml` counts what it holds, gives each fault its own sentence, and is XML whatever the findings hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from harness.invariants.judgement import judge
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED, Verdict
from harness.records import LoadSummary
from harness.report.junit import write_junit
from harness.report.tests.rows import HOSTILE, evidence_of, fault, plan
from harness.run import Outcome
from harness.runs import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from harness.invariants.verdict import Ruling
    from harness.records import Row

SHORT = LoadSummary(
    begun=90,
    slots=100,
    missed_slots=10,
    rate_asked_per_s=10,
    rate_reached_per_s=9,
    p50_ms=1,
    p99_ms=2,
    note="",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A finding."""

    key: str

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key} was lost"


def verdict(state: Ruling, *, reason: str = "", key: str = "o1") -> Verdict:
    """Return a verdict with one finding."""
    return Verdict(
        invariant="X1", name="x", claim="", state=state, examined=1, reason=reason, findings=(Lost(key=key),)
    )


def suite_of(directory: Path, *rows: Row, verdicts: tuple[Verdict, ...] = ()) -> ET.Element:
    """Judge evidence of these rows, write the file and read it back."""
    judgement = replace(judge(evidence_of(*rows), ()), verdicts=verdicts)
    run = RunDirectory(id="run-1", path=directory)
    path = write_junit(Outcome(plan=plan(), directory=run, judgement=judgement, timings={"drive": 1.5, "judge": 0.25}))
    return ET.fromstring(path.read_bytes())  # noqa: S314 - our own file


def errors(suite: ET.Element) -> dict[str, str]:
    """Return the message of each test case that is an error."""
    return {
        str(case.get("name")): str(error.get("message"))
        for case in suite.iter("testcase")
        for error in case.iter("error")
    }


def test_the_counts_are_those_of_the_elements(tmp_path: Path) -> None:
    """A load that fell short is an error as much as an invariant that cannot tell."""
    suite = suite_of(
        tmp_path,
        SHORT,
        fault(from_ms=0, to_ms=1),
        fault(from_ms=2, to_ms=3, number=2, touched=0),
        verdicts=(verdict(HOLDS), verdict(VIOLATED), verdict(UNKNOWN)),
    )

    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "time")} == {
        "tests": "6",
        "failures": "1",
        "errors": "3",
        "time": "1.75",
    }
    for counted, element in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        assert len(list(suite.iter(element))) == int(str(suite.get(counted)))


def test_a_load_that_fell_short_is_an_error_with_its_sentence(tmp_path: Path) -> None:
    """The run is UNKNOWN, so CI must not see it all green."""
    (message,) = errors(suite_of(tmp_path, SHORT, verdicts=(verdict(HOLDS),))).values()

    assert message.startswith("the load fell short: 10 of 100")


def test_two_windows_of_one_fault_tell_each_its_own_sentence(tmp_path: Path) -> None:
    """The first bit but touched nothing, the second never healed, the third was fine."""
    told = errors(
        suite_of(
            tmp_path,
            fault(from_ms=0, to_ms=1, touched=0),
            fault(from_ms=2, to_ms=None, number=2),
            fault(from_ms=4, to_ms=5, number=3),
        )
    )

    assert list(told) == ["fault partition on payments->nats #1", "fault partition on payments->nats #2"]
    first, second = told.values()
    assert "is vacuous" in first
    assert "never healed" in second


def test_a_run_that_proves_everything_has_no_error(tmp_path: Path) -> None:
    """Nothing is added to a clean run."""
    suite = suite_of(tmp_path, fault(from_ms=0, to_ms=1), verdicts=(verdict(HOLDS),))

    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "0")


def test_control_characters_do_not_end_the_xml(tmp_path: Path) -> None:
    """Keys come from whoever called the system; XML has no way to write NUL."""
    suite = suite_of(
        tmp_path,
        replace(fault(from_ms=0, to_ms=None, target=HOSTILE), why="\x1b[31m"),
        verdicts=(verdict(VIOLATED, reason=HOSTILE, key=HOSTILE),),
    )

    (failure,) = suite.iter("failure")
    assert "\\x00" in str(failure.text)
    assert "\\x00" in str(failure.get("message"))
    (message,) = errors(suite).values()
    assert "\\x1b" in message
