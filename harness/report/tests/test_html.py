"""The page says what was judged, shows when the storm blew, trusts no text, loads nothing, and stays small."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from harness.invariants.invariant import Examination, Invariant
from harness.invariants.judgement import judge
from harness.records import Outcome as Answer
from harness.report.html import FINDINGS_TOLD, STORY_LINES_MAX, repeat_command, write_html
from harness.report.printable import printable
from harness.report.tests.rows import (
    HOSTILE,
    asked,
    channel,
    charged,
    evidence_of,
    fault,
    happened,
    plan,
    settled,
    spanned,
    stored,
)
from harness.run import Outcome
from harness.runs import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from harness.evidence.store import Evidence
    from harness.plan import Plan
    from harness.records import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedTwice:
    """A key with more than one charge."""

    key: str
    charges: int

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key} was charged {self.charges} times"


def _charged_twice(evidence: Evidence) -> Examination:
    rows = evidence.query("SELECT key, count(*) FROM ledger GROUP BY key HAVING count(*) > 1 ORDER BY min(seq)")
    return Examination(
        examined=evidence.count("SELECT count(DISTINCT key) FROM ledger"),
        safety=tuple(ChargedTwice(key=key, charges=charges) for key, charges in rows),
    )


CHARGED_ONCE = Invariant(
    id="X1", name="charged once", claim="nobody <ever> pays twice", needs=("ledger",), look=_charged_twice
)


def page_of(directory: Path, *rows: Row, planned: Plan | None = None, with_invariants: bool = True) -> str:
    """Write the report of these rows and return it."""
    with evidence_of(*rows) as evidence:
        outcome = Outcome(
            plan=planned or plan(),
            directory=RunDirectory(id="run-1", path=directory),
            judgement=judge(evidence, [CHARGED_ONCE] if with_invariants else []),
            timings={"start": 1.25, "judge": 0.5},
        )
        path = write_html(outcome, evidence)
    assert path == directory / "report.html"
    return path.read_text(encoding="utf-8")


class _Text(HTMLParser):
    """Collects what a reader sees, and every tag and attribute that could load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag and what it refers to."""
        self.tags.add(tag)
        self._hidden += tag == "style"
        self.references += [
            f"{name}={value}"
            for name, value in attrs
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"} or name.startswith("on")
        ]

    def handle_endtag(self, tag: str) -> None:
        """Leave the style sheet."""
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        """Keep what is shown."""
        if not self._hidden:
            self.words.append(data)


def read(page: str) -> _Text:
    """Parse a page as a browser would."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    return parser


def told(page: str) -> str:
    """Return the text that a reader sees, with single spaces."""
    return " ".join(" ".join(read(page).words).split())


# The verdict.


def test_a_run_that_holds_says_so_with_what_was_examined(tmp_path: Path) -> None:
    """The word, and one sentence with the numbers that carry it."""
    page = page_of(
        tmp_path,
        asked("o1", at_ms=0),
        settled("o1", at_ms=400),
        charged("o1", at_ms=30),
        fault(from_ms=10, to_ms=200),
        channel("ledger"),
    )

    text = told(page)
    assert "✓ HOLDS 1 invariant proved on 1 thing examined, 1 fault seen to strike and to heal." in text
    assert "The story of" not in text
    assert "no counterexample was found" in text


def test_a_violated_run_says_which_claim_broke_and_on_what(tmp_path: Path) -> None:
    """The first finding's sentence is the reason, and the finding stands at its invariant."""
    page = page_of(
        tmp_path, asked("o1", at_ms=0), charged("o1", at_ms=30), charged("o1", at_ms=90, seq=2), channel("ledger")
    )

    text = told(page)
    assert "✗ VIOLATED X1 charged once: o1 was charged 2 times (1 finding)." in text
    assert "1 finding in all" in text
    assert "nobody <ever> pays twice" in text


def test_a_storm_that_did_not_blow_is_unknown_and_says_why(tmp_path: Path) -> None:
    """A vacuous fault outranks claims that hold."""
    page = page_of(
        tmp_path,
        asked("o1", at_ms=0),
        charged("o1", at_ms=30),
        fault(from_ms=10, to_ms=20, touched=0),
        channel("ledger"),
    )

    assert "? UNKNOWN The storm proves nothing: fault partition on payments->nats is vacuous" in told(page)


def test_a_claim_without_evidence_names_the_gap(tmp_path: Path) -> None:
    """UNKNOWN says which invariant cannot be told, and for want of what."""
    page = page_of(tmp_path, asked("o1", at_ms=0), channel("ledger", received=0, why="there is no ledger"))

    text = told(page)
    assert "X1 charged once cannot be told: channel ledger is incomplete: there is no ledger." in text
    assert "ledger cannot know 0 ✗ no : there is no ledger" in text


def test_only_the_first_findings_are_shown_with_how_many_there_are(tmp_path: Path) -> None:
    """A thousand findings must not make a page of a thousand lines."""
    rows: list[Row] = [charged(f"o{number // 2:04d}", at_ms=number, seq=number + 1) for number in range(100)]

    text = told(page_of(tmp_path, *rows, channel("ledger")))

    assert text.count("was charged 2 times") == FINDINGS_TOLD + 1  # and the verdict's sentence
    assert "17 more of 50 findings" in text
    assert "30 findings are not shown" in text


# What was done, and how to do it again.


@pytest.mark.parametrize(
    ("planned", "command"),
    [
        (plan(), "stormproof run payments-partition --seed 7"),
        (
            plan(mutant="my bugs/no key.py", backend="cluster"),
            "stormproof run payments-partition --seed 7 --backend cluster --mutant 'my bugs/no key.py'",
        ),
        (plan("load:steady"), "stormproof load steady --rate 100 --duration 5 --seed 7"),
        (plan("up"), "stormproof up --seed 7"),
    ],
    ids=["experiment", "planted-bug", "load", "up"],
)
def test_the_page_tells_how_to_carry_the_plan_out_again(tmp_path: Path, planned: Plan, command: str) -> None:
    """The command can be pasted into a shell, whatever the path's name."""
    assert repeat_command(planned) == command
    assert command in told(page_of(tmp_path, asked("o1", at_ms=0), planned=planned))


def test_the_planted_bug_stands_at_the_top(tmp_path: Path) -> None:
    """A verdict on a mutant must not be taken for one on the system."""
    assert "planted bug bug.py" in told(page_of(tmp_path, asked("o1", at_ms=0), planned=plan(mutant="bug.py")))


def test_operations_latencies_and_recovery_are_told(tmp_path: Path) -> None:
    """The measured numbers come from the evidence."""
    text = told(
        page_of(
            tmp_path,
            asked("o1", at_ms=0, took_ms=20),
            asked("o2", at_ms=10, took_ms=5, answer=Answer.FAILED),
            asked("o3", at_ms=20, took_ms=None, answer=Answer.UNKNOWN),
            settled("o1", at_ms=1500),
            fault(from_ms=100, to_ms=1000),
        )
    )

    assert "operations 3 1 ok, 1 failed, 1 unknown" in text
    assert "until accepted p50 20.0 ms, p99 20.0 ms" in text
    assert "until settled p50 1.50 s, p99 1.50 s" in text
    assert "recovery 0.50 s" in text
    assert "start 1.25 s judge 0.50 s" in text


def test_a_fault_says_when_it_blew_and_what_it_caught(tmp_path: Path) -> None:
    """Window, grip, operations touched, and whether both ends were seen."""
    text = told(page_of(tmp_path, asked("o1", at_ms=0), fault(from_ms=1200, to_ms=4200)))

    assert "partition payments->nats 1.20 s to 4.20 s (3.00 s) 4,321 bytes 7 ✓ yes" in text


def test_a_fault_that_never_healed_says_so(tmp_path: Path) -> None:
    """An open window is not an empty cell."""
    text = told(page_of(tmp_path, asked("o1", at_ms=0), fault(from_ms=1200, to_ms=None)))

    assert "from 1.20 s, never healed" in text
    assert "✗ no : the probe heard nothing" in text
    assert "partition payments->nats, never healed" in text


def test_each_life_of_a_process_is_one_row_with_the_log_of_its_death(tmp_path: Path) -> None:
    """A death that nobody asked for shows its last words."""
    text = told(
        page_of(
            tmp_path,
            asked("o1", at_ms=0),
            happened("payments", "started", at_ms=-900),
            happened(
                "payments", "exited", at_ms=5, detail="unexpected: signal SIGSEGV; its log ends:\n  <core> dumped"
            ),
            happened("payments", "started", at_ms=30, pid=101, detail="boot 2"),
        )
    )

    assert "payments 100 started -0.90 s boot 1 exited 0.01 s unexpected: signal SIGSEGV" in text
    assert "<core> dumped" in text
    assert "payments 101 started 0.03 s boot 2" in text


# The story of the first finding.


def test_the_story_merges_every_channel_in_the_order_of_time(tmp_path: Path) -> None:
    """One order's way through the storm, each line with its milliseconds."""
    page = page_of(
        tmp_path,
        asked("o1", at_ms=100, took_ms=15),
        asked("o2", at_ms=0),
        stored("o1", at_ms=110),
        spanned("o1", at_ms=120, took_ms=7),
        spanned("o2", at_ms=121, name="not of o1"),
        spanned("o1", at_ms=220, took_ms=None, name="charge again", number=4),
        charged("o1", at_ms=125),
        charged("o1", at_ms=225, seq=2),
        fault(from_ms=130, to_ms=230),
        happened("payments", "killed", at_ms=140),
        settled("o1", at_ms=300, read_ms=400),
        channel("ledger"),
    )

    rows = [
        told(row)
        for row in re.findall(r"<tr class=\"(?:\w+)\">.*?</tr>", page.split("The story of")[1], flags=re.DOTALL)
    ]
    assert rows == [
        "0.0 operations client began: create",
        "10.0 messages broker stored ORDERS#1 orders.created, without an id",
        "15.0 operations client ended: ok, status 202",
        "20.0 spans payments charge (client) 7.0 ms",
        "25.0 ledger charge 1250 EUR (minor units), ch-1, idempotency key o1",
        "30.0 faults nemesis partition on payments->nats began",
        "40.0 processes payments killed, pid 100",
        "120.0 spans payments charge again (client), never ended",
        "125.0 ledger charge 1250 EUR (minor units), ch-2, idempotency key o1",
        "130.0 faults nemesis partition on payments->nats healed",
        "200.0 states system settled: PAID",
        "300.0 states client final read: PAID, 1250 (minor units)",
    ]
    assert f"stormproof explain {tmp_path} o1" in told(page)


def test_a_long_story_leaves_out_spans_and_never_the_charges(tmp_path: Path) -> None:
    """The counterexample itself must survive the bound."""
    spans = [spanned("o1", at_ms=10 + number, number=number + 3, name=f"try {number}") for number in range(200)]

    page = page_of(
        tmp_path,
        asked("o1", at_ms=0),
        *spans,
        charged("o1", at_ms=5),
        charged("o1", at_ms=900, seq=2),
        channel("ledger"),
    )

    story = page.split("The story of")[1]
    assert story.count("<tr class=") == STORY_LINES_MAX
    assert story.count('<tr class="ledger">') == 2
    assert f"{200 + 4 - STORY_LINES_MAX} more rows are left out" in told(page)


# The timeline.


def test_fault_window_and_process_kill_stand_in_the_page(tmp_path: Path) -> None:
    """Shade, name and tick, with the unit of the axis."""
    page = page_of(
        tmp_path,
        asked("o1", at_ms=0),
        asked("o2", at_ms=5_000),
        fault(from_ms=1200, to_ms=4200),
        happened("payments", "killed", at_ms=2_000),
    )

    assert page.count('<rect class="storm"') == 1
    assert page.count('<line class="died"') == 1
    text = told(page)
    assert "partition payments->nats, 3 s" in text
    assert "payments killed" in text
    assert "seconds since the first operation began" in text
    assert "operations begun, per 50 ms" in text


@pytest.mark.parametrize("answer", list(Answer))
def test_one_operation_alone_can_be_drawn(tmp_path: Path, answer: Answer) -> None:
    """No length of time, no answer, no state: still a page."""
    text = told(page_of(tmp_path, asked("o1", at_ms=0, took_ms=None, answer=answer)))

    assert "no operation was answered" in text
    assert "no final state was read" in text
    assert "1 operations were never answered" in text


# Without evidence.


def test_empty_evidence_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    """No operation, fault, state, channel or process; and no empty chart."""
    page = page_of(tmp_path)

    text = told(page)
    assert "? UNKNOWN" in text
    assert "Nothing was placed" in text
    assert "No fault was played." in text
    assert "No channel was collected." in text
    assert "No process was started." in text
    assert "<svg" not in page


def test_without_invariants_nothing_is_proved(tmp_path: Path) -> None:
    """A run that nobody judged is UNKNOWN."""
    assert "? UNKNOWN No invariant was judged." in told(page_of(tmp_path, with_invariants=False))


def test_a_fault_without_operations_is_listed(tmp_path: Path) -> None:
    """Its length is told even though there is no origin to count from."""
    text = told(page_of(tmp_path, fault(from_ms=0, to_ms=1500), happened("orders", "started", at_ms=10)))

    assert "partition payments->nats 1.50 s 4,321 bytes" in text
    assert "started 0.00 s" in text


# Trust nothing, load nothing, stay small.


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    """Keys, details, targets and names come from outside; each is text, with what does not print spelled out."""
    page = page_of(
        tmp_path,
        asked(HOSTILE, at_ms=0, detail=HOSTILE),
        stored(HOSTILE, at_ms=1, subject=HOSTILE),
        replace(spanned(HOSTILE, at_ms=2, name=HOSTILE), service=HOSTILE),
        charged(HOSTILE, at_ms=3),
        charged(HOSTILE, at_ms=4, seq=2),
        settled(HOSTILE, at_ms=5, state=HOSTILE),
        fault(from_ms=1, to_ms=2, target=HOSTILE),
        happened(HOSTILE, "killed", at_ms=3, detail=f"unexpected: {HOSTILE}\n{HOSTILE}"),
        channel("ledger"),
        channel(HOSTILE, why=HOSTILE),
        planned=plan(f"load:{HOSTILE}", mutant=HOSTILE),
    )

    seen = read(page)
    assert "script" not in seen.tags
    assert "img" not in seen.tags
    assert seen.references == []
    assert "\u202e" not in page
    assert "\x00" not in page
    assert printable(HOSTILE) in told(page)
    assert "\\u202e\\x00" in told(page)


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    """One file: it can be mailed, and opened where there is no network."""
    page = page_of(tmp_path, asked("o1", at_ms=0), fault(from_ms=0, to_ms=5), channel("ledger"))

    seen = read(page)
    assert seen.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    assert seen.references == []
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#failed", "#unknown"}
    assert "default-src 'none'" in page


def test_fifty_thousand_operations_make_a_small_page(tmp_path: Path) -> None:
    """The page's size follows its bounds, not the run."""
    rows: list[Row] = []
    for number in range(50_000):
        key = f"o{number:06d}"
        answer = Answer.OK if number % 97 else Answer.UNKNOWN
        rows.append(asked(key, at_ms=number / 10, took_ms=3 + number % 41, answer=answer))
        rows.append(settled(key, at_ms=number / 10 + 30))
        rows.append(charged(key, at_ms=number / 10 + 10, seq=number + 1))
    rows += [charged(f"o{number:06d}", at_ms=number, seq=60_000 + number) for number in range(5_000)]
    rows += [fault(from_ms=number * 10, to_ms=number * 10 + 4, number=number) for number in range(300)]
    rows += [happened("payments", "killed", at_ms=number * 10, pid=number) for number in range(300)]

    page = page_of(tmp_path, *rows, channel("ledger"))

    assert len(page.encode()) < 150_000
    text = told(page)
    assert "17 more of 5,000 findings" in text
    assert "4,980 findings are not shown" in text
    assert "250 more faults are not shown" in text
    assert "260 more fault windows are not drawn" in text
    assert "250 more boots are not shown" in text


def test_a_text_without_end_is_cut(tmp_path: Path) -> None:
    """A body of a megabyte may stand in a detail."""
    page = page_of(
        tmp_path,
        asked("o1", at_ms=0, detail="x" * 1_000_000),
        charged("o1", at_ms=1),
        charged("o1", at_ms=2, seq=2),
        channel("ledger", why="y" * 1_000_000),
    )

    assert len(page) < 50_000
