"""The verdict rules, one by one, with invariants made for the purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evidence.in_memory import evidence_of
from harness.invariants.invariant import Examination, Invariant
from harness.invariants.judgement import judge
from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED, Ruling, worst
from harness.records import FaultWindow, LoadSummary, Operation, Outcome, ProcessEvent

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

WINDOW = FaultWindow(
    number=0,
    name="partition",
    target="a->b",
    began_ns=1,
    healed_ns=2,
    grip=10,
    grip_unit="bytes",
    touched=3,
    verified=True,
    why="",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A finding for these tests."""

    key: str = "k"

    def sentence(self) -> str:
        """Say it."""
        return f"{self.key} was seen"


def claim(examination: Examination) -> Invariant:
    """Make an invariant that always sees the same."""
    return Invariant(id="T1", name="test", claim="it is so", needs=("ledger",), look=lambda _evidence: examination)


def test_of_no_verdicts_nothing_is_known() -> None:
    """An empty judgement is not green."""
    assert worst([]) is UNKNOWN


@given(st.lists(st.sampled_from(list(Ruling)), min_size=1))
def test_rulings_merge_by_the_worst(rulings: list[Ruling]) -> None:
    """VIOLATED beats UNKNOWN beats HOLDS, in any order and number."""
    order = [HOLDS, UNKNOWN, VIOLATED]
    assert worst(rulings) is max(rulings, key=order.index)


@pytest.mark.parametrize(
    ("examination", "complete", "state"),
    [
        (Examination(examined=1), True, HOLDS),
        (Examination(examined=1), False, UNKNOWN),
        (Examination(examined=0), True, UNKNOWN),
        (Examination(examined=1, safety=(Seen(),)), True, VIOLATED),
        (Examination(examined=1, safety=(Seen(),)), False, VIOLATED),
        (Examination(examined=1, liveness=(Seen(),)), True, VIOLATED),
        (Examination(examined=1, liveness=(Seen(),)), False, UNKNOWN),
        (Examination(examined=0, safety=(Seen(),)), True, VIOLATED),
    ],
)
def test_a_ruling_follows_from_what_was_seen_and_whether_all_was_seen(
    examination: Examination, complete: bool, state: Ruling
) -> None:
    """The whole truth table of safety, liveness, silence and completeness."""
    evidence = evidence_of(incomplete={} if complete else {"ledger": "torn"})

    assert claim(examination).judge(evidence).state is state


def test_liveness_findings_of_an_unhealed_fault_are_unknown() -> None:
    """Nothing is demanded while the storm still blows."""
    evidence = evidence_of(replace(WINDOW, healed_ns=None, verified=False, why="Toxiproxy is gone"))

    verdict = claim(Examination(examined=1, liveness=(Seen(),))).judge(evidence)

    assert verdict.state is UNKNOWN
    assert "never healed" in verdict.reason


def test_an_invariant_that_ends_the_process_is_unknown() -> None:
    """Code that gives up with exit(0) must not take the whole judgement with it, as if all were well."""

    def gives_up(_evidence: Evidence) -> Examination:
        raise SystemExit(0)

    verdict = Invariant(id="X", name="x", claim="", needs=(), look=gives_up).judge(evidence_of())

    assert verdict.state is UNKNOWN
    assert "the invariant itself crashed: SystemExit" in verdict.reason


def test_an_invariant_that_crashes_is_unknown_and_says_where() -> None:
    """A broken check must never look like a check that passed."""

    def look(_evidence: Evidence) -> Examination:
        raise ZeroDivisionError("of nothing")

    verdict = replace(claim(Examination(examined=1)), look=look).judge(evidence_of())

    assert verdict.state is UNKNOWN
    assert "ZeroDivisionError" in verdict.reason


def test_a_channel_that_was_not_collected_is_a_gap() -> None:
    """A name that no collector knows is no evidence."""
    verdict = replace(claim(Examination(examined=1)), needs=("moon",)).judge(evidence_of())

    assert verdict.state is UNKNOWN
    assert "channel moon is incomplete" in verdict.reason


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (replace(WINDOW, grip=0), "caught no bytes"),
        (replace(WINDOW, touched=0), "no operation in flight was held up"),
        (replace(WINDOW, verified=False, why="it could not be injected"), "it could not be injected"),
        (replace(WINDOW, healed_ns=None, why="the link does not answer"), "never healed"),
    ],
)
def test_a_fault_that_did_not_bite_makes_the_run_unknown(window: FaultWindow, says: str) -> None:
    """A storm that did not blow proves nothing, even when every invariant holds."""
    judgement = judge(evidence_of(window), [claim(Examination(examined=1))])

    assert judgement.state is UNKNOWN
    assert len(judgement.vacuous) == 1
    assert says in judgement.vacuous[0]


def test_a_violation_stays_a_violation_when_a_fault_was_vacuous() -> None:
    """A bad thing that was seen needs no storm to be bad."""
    judgement = judge(evidence_of(replace(WINDOW, touched=0)), [claim(Examination(examined=1, safety=(Seen(),)))])

    assert judgement.state is VIOLATED


def test_a_judgement_explains_itself_with_its_findings() -> None:
    """An assertion message is all that a failed test shows."""
    judgement = judge(evidence_of(WINDOW), [claim(Examination(examined=4, safety=(Seen(key="o7"),)))])

    assert "VIOLATED T1 test: 4 examined" in judgement.explain()
    assert "o7 was seen" in judgement.explain()


def test_a_load_that_fell_short_makes_the_run_unknown() -> None:
    """Every order that was placed is fine, but it was not the load that was asked for."""
    load = LoadSummary(
        begun=90,
        slots=100,
        missed_slots=10,
        rate_asked_per_s=100,
        rate_reached_per_s=90,
        p50_ms=1.5,
        p99_ms=None,
        note="users were the limit",
    )

    short = judge(evidence_of(load), [claim(Examination(examined=90))])
    full = judge(evidence_of(replace(load, missed_slots=0)), [claim(Examination(examined=100))])

    assert (short.state, full.state) == (UNKNOWN, HOLDS)
    assert short.vacuous == (
        "the load fell short: 10 of 100 operations that were due were never begun (90/s of 100/s asked)",
    )
    assert full.load == replace(load, missed_slots=0)


def operation(key: str, outcome: Outcome) -> Operation:
    """Make an operation with this outcome."""
    return Operation(
        number=0,
        kind="create",
        key=key,
        outcome=outcome,
        intended_ns=0,
        began_ns=0,
        ended_ns=1,
        trace_id=None,
        span_id=None,
        status=None,
        detail="",
        request="{}",
    )


def test_a_load_of_which_hardly_anything_was_accepted_makes_the_run_unknown() -> None:
    """One order that went well among two refused ones proves next to nothing."""
    refused = (operation("o2", Outcome.UNKNOWN), operation("o3", Outcome.FAILED))

    judgement = judge(evidence_of(operation("o1", Outcome.OK), refused), [claim(Examination(examined=1))])

    assert judgement.state is UNKNOWN
    assert judgement.vacuous == (
        "hardly anything was accepted: 1 of 3 operations of kind create, so what is promised of them was hardly tried",
    )
    assert judgement.outcomes == {"failed": 1, "ok": 1, "unknown": 1}


def test_a_kind_of_which_hardly_anything_was_accepted_is_not_hidden_by_the_others() -> None:
    """Many orders went well; what is promised of cancellations was not tried at all."""
    fine = tuple(replace(operation(f"o{number}", Outcome.OK), number=number) for number in range(8))
    refused = replace(operation("o1", Outcome.FAILED), number=8, kind="cancel")

    judgement = judge(evidence_of(fine, refused), [claim(Examination(examined=8))])

    assert judgement.vacuous == (
        "hardly anything was accepted: 0 of 1 operations of kind cancel, so what is promised of them was hardly tried",
    )


@pytest.mark.parametrize(("accepted", "is_told"), [(9, False), (8, True)])
def test_what_is_refused_before_the_storm_was_not_refused_because_of_it(accepted: int, is_told: bool) -> None:
    """Orders lost at the door, for which nobody was promised anything: a quarter is the boundary."""
    window = replace(WINDOW, began_ns=1_000, healed_ns=2_000)
    before = [
        replace(
            operation(f"o{number}", Outcome.OK if number < accepted else Outcome.UNKNOWN), number=number, ended_ns=999
        )
        for number in range(12)
    ]
    within = replace(operation("late", Outcome.UNKNOWN), number=12, ended_ns=1_000)

    judgement = judge(evidence_of(window, *before, within), [claim(Examination(examined=1))])

    sentence = (
        f"before the first fault only {accepted} of 12 operations of kind create were accepted, so something else than "
        "the storm is wrong"
    )
    assert judgement.vacuous == ((sentence,) if is_told else ())


def test_a_process_that_died_by_itself_makes_the_run_unknown() -> None:
    """No promise was seen broken, and still nobody would call that all right."""
    death = ProcessEvent(process="payments", pid=1, event="exited", at_ns=5, detail="unexpected: exit code 7\nlog")
    asked_for = replace(death, detail="exit code 0")

    assert judge(evidence_of(asked_for), [claim(Examination(examined=1))]).state is HOLDS
    judgement = judge(evidence_of(death), [claim(Examination(examined=1))])
    assert judgement.state is UNKNOWN
    assert judgement.vacuous == judgement.died == ("payments died by itself: unexpected: exit code 7",)


def test_a_planned_fault_that_is_not_on_record_makes_the_run_unknown() -> None:
    """Somebody lost it, or took it out."""
    judgement = judge(evidence_of(WINDOW), [claim(Examination(examined=1))], planned_faults=2)

    assert judgement.vacuous == ("2 faults were planned, 1 are on record",)


def test_a_finding_that_cannot_tell_itself_is_unknown_not_a_crash() -> None:
    """A stranger's finding may raise when it is asked for its sentence."""

    class Mute(Seen):
        def sentence(self) -> str:
            raise RuntimeError("no words")

    assert claim(Examination(examined=1, safety=(Mute(),))).judge(evidence_of()).state is UNKNOWN
