"""The storms: a short one is weathered for real, and the judge sees every kind of violation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from system.benchmarks import storm_table, storms
from system.benchmarks.nemesis import STORMS
from system.benchmarks.parts import BenchmarkError
from system.benchmarks.storms import Plan, main, weathered
from system.benchmarks.verdicts import Answer, Evidence, Life, Order, Spread, Verdict, judged

SECOND = 1_000_000_000
BEGAN_NS = 1_000 * SECOND
ENDED_NS = BEGAN_NS + 10 * SECOND


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a storm shall leave nothing."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


def test_a_silent_provider_costs_time_and_no_order(scratch: Path) -> None:
    """P15: it is left in peace, orders are taken all the while, and each is charged once when it speaks again."""
    told: list[str] = []
    plan = Plan(
        storm="silent-provider",
        rate_per_s=100,
        silent_s=3.0,
        before_s=0.5,
        after_s=0.5,
        more={"PAYMENTS_BREAKER_OPEN_S": "1", "PROVIDER_TIMEOUT_S": "0.5"},
    )

    found = weathered(plan, tell=told.append)

    assert found.holds, (storm_table.table(plan.storm, "in a test", found), told)
    assert found.asked >= 300
    assert found.answers == {Answer.ACCEPTED: found.asked, Answer.UNKNOWN: 0, Answer.REFUSED: 0, Answer.LOST: 0}
    assert found.breaker_openings >= 1
    assert found.storm_s >= 3.0
    assert found.longest_settle_s >= 1.0, "the storm was felt"
    assert found.calls.mean >= 1.0
    assert found.deliveries.mean >= 1.0
    assert set(found.lives.values()) == {Life()}
    assert list(scratch.iterdir()) == []


def settled(*, after_s: float = 0.1, status: str = "PAID") -> Order:
    """An order of the middle of the storm."""
    created_ns = BEGAN_NS + 5 * SECOND
    return Order(status=status, created_at_ns=created_ns, settled_at_ns=created_ns + int(after_s * SECOND))


PENDING = Order(status="PENDING", created_at_ns=BEGAN_NS, settled_at_ns=None)
CALM = Evidence(
    answers={"o1": Answer.ACCEPTED, "o2": Answer.UNKNOWN, "o3": Answer.REFUSED, "o4": Answer.LOST},
    refusals={"503": 1},
    missed=0,
    orders={"o1": settled(after_s=8.0), "o2": settled()},
    charges={"o1": [1250], "o2": [1250]},
    amount_minor=1250,
    dead_letters=0,
    rested=True,
    calls=(1, 3),
    deliveries=(1, 2),
    breaker_openings=2,
    storm_began_ns=BEGAN_NS,
    storm_ended_ns=ENDED_NS,
    lives={"orders": Life(), "payments": Life(killed=(-9, -9))},
)


def test_what_was_weathered_is_told_in_figures() -> None:
    """An order of unknown outcome may exist or not; both are well."""
    found = judged(CALM)

    assert found.holds
    assert (found.asked, found.unknown_existing, found.unknown_absent) == (4, 1, 1)
    assert found.storm_s == 10.0
    assert (found.longest_settle_s, found.backlog_gone_s) == (8.0, 3.0)
    assert (found.calls, found.deliveries) == (Spread(mean=2.0, max=3), Spread(mean=1.5, max=2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"orders": {**CALM.orders, "o1": PENDING}, "charges": {"o2": [1250]}},
            "1 accepted orders that never settled: o1",
        ),
        ({"orders": {"o2": settled()}, "charges": {"o2": [1250]}}, "1 accepted orders that never settled: o1"),
        (
            {"orders": {**CALM.orders, "o2": PENDING}, "charges": {"o1": [1250]}},
            "1 orders of unknown outcome that exist and never settled: o2",
        ),
        ({"charges": {"o1": [1250, 1250], "o2": [1250]}}, "1 orders charged twice: o1"),
        ({"charges": {"o1": [1250], "o2": [1]}}, "1 orders charged another amount: o2"),
        ({"charges": {"o2": [1250]}}, "1 PAID without a charge: o1"),
        ({"orders": {**CALM.orders, "o2": settled(status="DECLINED")}}, "1 charged and not PAID: o2"),
        ({"charges": {**CALM.charges, "o4": [1250]}}, "1 charged and not PAID: o4"),
        (
            {"orders": {**CALM.orders, "o3": settled()}, "charges": {**CALM.charges, "o3": [1250]}},
            "1 refused orders that exist: o3",
        ),
        ({"dead_letters": 2}, "2 dead letters"),
    ],
)
def test_a_violated_must_is_seen_and_names_the_order(changes: dict[str, object], sentence: str) -> None:
    """Each of them alone is enough, and none is taken for another."""
    found = judged(dataclasses.replace(CALM, **changes))  # type: ignore[arg-type]

    assert found.violated == (sentence,)
    assert not found.holds
    assert f"VIOLATED: {sentence}" in storm_table.table("made-up", "in a test", found)


def test_a_part_that_ends_badly_is_not_weathered() -> None:
    """Every must holds, and still something is wrong."""
    found = judged(dataclasses.replace(CALM, lives={"orders": Life(last=1)}))

    assert found.violated == ()
    assert not found.holds
    assert found.broken == ("orders ended with code 1 when it was stopped",)


def test_a_shop_that_never_rests_is_not_weathered() -> None:
    """Every order is settled, and a message goes round and round."""
    found = judged(dataclasses.replace(CALM, rested=False))

    assert not found.holds
    assert found.broken == ("the shop did not come to rest",)


def test_a_storm_without_an_accepted_order_shows_nothing() -> None:
    """No order that is lost is not the same as every order that is kept."""
    nobody = dataclasses.replace(CALM, answers={"o3": Answer.REFUSED}, orders={}, charges={})

    assert judged(nobody).violated == ()
    assert not judged(nobody).holds


def test_one_storm_that_breaks_a_part_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are played, and what broke is told."""

    def made_up(plan: Plan, *, tell: object) -> Verdict:
        if plan.storm == "kill-orders":
            raise BenchmarkError("orders was not ready within 30 s")
        return judged(CALM)

    monkeypatch.setattr(storms, "weathered", made_up)

    assert main(["kill-orders", "kill-payments", "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert found["broke"] == {"kill-orders": "orders was not ready within 30 s"}
    assert [storm["storm"] for storm in found["storms"]] == ["kill-payments"]


def test_a_backlog_that_never_goes_is_no_number() -> None:
    """It would be a short time, if only those counted that settled."""
    assert judged(dataclasses.replace(CALM, orders={"o2": settled()})).backlog_gone_s is None


def test_the_verdicts_are_one_json_document() -> None:
    """Others read it: fields may join, none leaves."""
    found = json.loads(
        storm_table.document({"rate_per_s": 300, "database": "sqlite"}, [("kill-orders", judged(CALM))], {})
    )

    assert (found["schema"], found["rate_per_s"], found["database"]) == ("stormproof.storms/1", 300, "sqlite")
    (storm,) = found["storms"]
    assert (storm["storm"], storm["holds"], storm["violated"], storm["asked"]) == ("kill-orders", True, [], 4)
    assert storm["answers"] == {"accepted": 1, "unknown": 1, "refused": 1, "lost": 1}
    assert storm["lives"]["payments"] == {"killed": [-9, -9], "last": 0}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("hail",),
        ("all", "--rate", "0"),
        ("all", "--for", "0"),
        ("all", "--database", "mysql://here/shop"),
        ("all", "--database", "orders.db"),
        ("all", "--set", "NAME"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_64(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 64
    assert capsys.readouterr().err.count("\n") == 1


def test_the_words_about_the_storms_name_them_all() -> None:
    """A storm that nobody can read about is not played."""
    import system.benchmarks.nemesis as nemesis  # noqa: PLC0415, PLR0402 - for its docstring only

    assert [name for name in STORMS if f"`{name}`" not in (nemesis.__doc__ or "")] == []
