"""`stormproof explain RUN KEY` tells the whole story of one operation, and of no other."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest

from harness import cli
from harness.commands import explain
from harness.evidence.store import FILE_NAME, EvidenceWriter
from harness.records import Outcome, SpanId
from harness.report.printable import printable
from harness.report.tests.rows import (
    HOSTILE,
    asked,
    channel,
    charged,
    fault,
    happened,
    plan,
    settled,
    spanned,
    stored,
)
from scenarios.shop import SHOP

if TYPE_CHECKING:
    from harness.records import Row

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "harness" / "report" / "schemas" / "story.schema.json"

CHARGED_TWICE: tuple[Row, ...] = (
    asked("o1", at_ms=100, took_ms=15),
    asked("o2", at_ms=0),
    stored("o1", at_ms=110),
    spanned("o1", at_ms=120, took_ms=7),
    spanned("o2", at_ms=121, name="not of o1"),
    charged("o1", at_ms=125),
    charged("o1", at_ms=225, seq=2),
    charged("o2", at_ms=126, seq=3),
    fault(from_ms=130, to_ms=230),
    happened("payments", "killed", at_ms=140),
    settled("o1", at_ms=300, read_ms=400),
    channel("ledger"),
)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shop of this checkout is the system under test, from wherever the tests are started."""
    monkeypatch.chdir(ROOT)


def run_of(directory: Path, *rows: Row) -> str:
    """Write a run directory that holds these rows, and return its path as it is typed."""
    plan().write(directory)
    writer = EvidenceWriter(directory / FILE_NAME)
    writer.write(rows)
    writer.finish().close()
    return str(directory)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_story_is_a_table_in_the_order_of_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every channel, relative times, who, what, and how long it took."""
    assert cli.main(["explain", run_of(tmp_path, *CHARGED_TWICE), "o1"]) == 0

    told = lines_of(capsys.readouterr().out)
    assert told[: told.index("")] == [
        "at, ms channel who what took, ms",
        "0.0 operations client began: create",
        "10.0 messages broker stored ORDERS#1 orders.created, without an id",
        "15.0 operations client ended: ok, status 202",
        "20.0 spans payments charge (client) 7.0",
        "25.0 ledger charge 1250 EUR (minor units), ch-1, idempotency key o1",
        "30.0 faults nemesis partition on payments->nats began",
        "40.0 processes payments killed, pid 100",
        "125.0 ledger charge 1250 EUR (minor units), ch-2, idempotency key o1",
        "130.0 faults nemesis partition on payments->nats healed",
        "200.0 states system settled: PAID",
        "300.0 states client final read: PAID, 1250 (minor units)",
    ]


def test_the_trace_is_drawn_and_the_findings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree of its spans, then what the system's invariants hold against this key, then where it all is."""
    assert cli.main(["explain", run_of(tmp_path, *CHARGED_TWICE), "o1"]) == 0

    out = capsys.readouterr().out
    assert re.search(
        r"^create o1  ok  trace \w{32}\n└─ payments  charge  \[client\]  \+20\.0 ms, 7\.0 ms\n\n", out, re.MULTILINE
    )
    assert re.search(r"^VIOLATED  +I\d  +no double charge  +.*o1.* 2 ", out, re.MULTILINE)
    assert "o2" not in out
    assert out.endswith(f"run: {tmp_path}\n")


def test_a_key_that_nothing_is_held_against_has_no_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Findings about other keys are not its own; nor is it declared sound."""
    strict = tuple(each for each in SHOP.invariants if each.name == "no double charge")
    monkeypatch.setattr(explain, "configured_system", lambda: replace(SHOP, invariants=strict))
    rows = (charged("o1", at_ms=0), charged("o1", at_ms=1, seq=2), charged("o3", at_ms=2, seq=3))

    assert cli.main(["explain", run_of(tmp_path, *rows), "o3"]) == 0

    out = capsys.readouterr().out
    assert "\n\nno invariant has a finding about it (1 judged)\n" in out
    assert "HOLDS" not in out


def test_the_document_is_what_its_schema_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the document and nothing else."""
    assert cli.main(["explain", run_of(tmp_path, *CHARGED_TWICE), "o1", "--json"]) == 0

    captured = capsys.readouterr()
    document = json.loads(captured.out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert captured.err == ""
    assert (document["run"], document["key"], document["left_out"]) == (str(tmp_path), "o1", 0)
    assert len(document["lines"]) == 11
    assert document["lines"][3] == {
        "at_ms": 20.0,
        "channel": "spans",
        "who": "payments",
        "what": "charge (client)",
        "took_ms": 7.0,
    }


def test_a_key_that_nobody_knows_is_wrong_use_and_the_nearest_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three, with the mistyped one first."""
    run = run_of(tmp_path, *(asked(key, at_ms=0) for key in ("apple", "order-1", "order-77", "order-99", "zebra")))

    assert cli.main(["explain", run, "ordr-1"]) == 64

    captured = capsys.readouterr()
    assert captured.out == ""
    said = re.fullmatch(
        r"stormproof: no channel of this run knows the key 'ordr-1'; it knows, for example: (.*)\n", captured.err
    )
    assert said is not None
    named = said.group(1).split(", ")
    assert named[0] == "order-1"
    assert set(named) == {"order-1", "order-77", "order-99"}


def test_a_run_without_any_key_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to name instead."""
    assert cli.main(["explain", run_of(tmp_path, fault(from_ms=0, to_ms=1)), "o1", "--json"]) == 64

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "knows the key 'o1', nor any other" in captured.err


def test_a_key_that_is_not_utf_8_is_nobodys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line may carry any bytes; they end in a sentence."""
    assert cli.main(["explain", run_of(tmp_path, asked("o1", at_ms=0)), "o1\udcff"]) == 64

    assert "knows the key 'o1?'; it knows, for example: o1\n" in capsys.readouterr().err


def test_a_run_of_another_system_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing would be held against its key by invariants of the shop; the bare story needs none."""
    run = run_of(tmp_path, *CHARGED_TWICE)
    replace(plan(), system="warehouse").write(tmp_path)

    assert cli.main(["explain", run, "o1"]) == 64
    told = capsys.readouterr()
    assert (told.out, "a run of the system 'warehouse'" in told.err) == ("", True)

    assert cli.main(["explain", run, "o1", "--json"]) == 0


def test_a_directory_that_is_no_run_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As for `check`."""
    assert cli.main(["explain", str(tmp_path), "o1"]) == 64
    assert "is not a run directory" in capsys.readouterr().err


def test_a_run_that_never_wrote_its_evidence_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can tell its stories."""
    plan().write(tmp_path)

    assert cli.main(["explain", str(tmp_path), "o1"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not print is spelled out, markup and emoji codes are words, and a name draws no line of the tree."""
    name = "[red]:bomb:\x1b[2J\n└─ orders  all is well"
    rows = (
        asked(HOSTILE, at_ms=0, detail=name, answer=Outcome.UNKNOWN),
        replace(spanned(HOSTILE, at_ms=1, name=name), service=name),
        happened(name, "killed", at_ms=2),
    )

    assert cli.main(["explain", run_of(tmp_path, *rows), HOSTILE]) == 0

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\x00" not in out
    assert printable(HOSTILE) in out
    assert "[red]:bomb:\\x1b[2J\\n" in out
    assert [line for line in out.splitlines() if line.startswith("└─ orders")] == []


def test_a_story_without_end_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bound, and that of the traces of one key."""
    monkeypatch.setattr(explain, "LINES_MAX", 50)
    monkeypatch.setattr(explain, "TRACES_MAX", 3)
    spans = (spanned("o1", at_ms=10 + number, number=number + 3) for number in range(100))
    retries = (replace(asked("o1", at_ms=number), span_id=SpanId(1), number=number) for number in range(5))
    run = run_of(tmp_path, *spans, *retries)

    assert cli.main(["explain", run, "o1"]) == 0
    out = capsys.readouterr().out
    assert "\n60 more rows are left out, spans first\n" in out
    assert out.count("\ncreate o1  ok") == 3
    assert "the traces of 2 more operations are not drawn" in out

    assert cli.main(["explain", run, "o1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (len(document["lines"]), document["left_out"]) == (50, 60)


def test_the_schema_bounds_the_lines_as_the_command_does() -> None:
    """Whoever reads the contract may rely on it."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]["lines"]["maxItems"] == explain.LINES_MAX
