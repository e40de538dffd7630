"""What a fault is credited with: operations that it held up, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.evidence.store import EvidenceWriter
from harness.evidence.touching import touching
from harness.records import FaultWindow, Operation, Outcome, State

MS = 1_000_000
WINDOW = FaultWindow(
    number=0,
    name="partition",
    target="a->b",
    began_ns=10_000 * MS,
    healed_ns=20_000 * MS,
    grip=10,
    grip_unit="bytes",
    touched=0,
    verified=True,
    why="",
)


def order(*, began_ms: int, settled_ms: int | None, outcome: Outcome = Outcome.OK) -> tuple[Operation, State]:
    """Return an operation that was answered at once, and when what it is about became final."""
    operation = Operation(
        number=0,
        kind="create",
        key=f"{began_ms}-{settled_ms}-{outcome}",
        outcome=outcome,
        intended_ns=began_ms * MS,
        began_ns=began_ms * MS,
        ended_ns=(began_ms + 5) * MS,
        trace_id=None,
        span_id=None,
        status=202,
        detail="",
        request="{}",
    )
    state = State(
        key=operation.key,
        state="PENDING" if settled_ms is None else "PAID",
        is_final=settled_ms is not None,
        read_ns=99_000 * MS,
        settled_ns=None if settled_ms is None else settled_ms * MS,
        amount_minor=None,
    )
    return operation, state


USUAL = order(began_ms=1_000, settled_ms=1_100)
"""The slowest before the storm took 100 ms, so 200 ms are usual."""


def touched(
    *others: tuple[Operation, State],
    window: FaultWindow = WINDOW,
    healed_before_ms: int = 0,
    before: tuple[tuple[Operation, State], ...] = (USUAL,),
) -> int:
    """Return how many operations the window is credited with."""
    writer = EvidenceWriter(None)
    for pair in (*before, *others):
        writer.write(pair)
    found = touching(writer, window, WINDOW.began_ns, healed_before_ns=healed_before_ms * MS)
    writer.finish().close()
    return found.touched


@pytest.mark.parametrize(
    ("began_ms", "settled_ms", "is_touched"),
    [
        (9_000, 9_150, False),  # over before it began
        (9_950, 20_100, True),  # in flight all the time
        (15_000, 20_300, True),  # begun in it, final after the heal
        (19_950, 20_100, False),  # in flight at the heal, and no longer than is usual
        (12_000, 12_900, False),  # slow within it, which happens
        (12_000, 13_200, False),  # the boundary
        (12_000, 13_201, True),  # the system got over it, and it took
        (7_000, 10_900, False),  # it was slow long before
        (7_000, 11_300, True),
        (21_000, 25_000, False),  # begun after the heal
        (15_000, None, True),  # never final
        (21_000, None, False),
    ],
)
def test_an_operation_is_held_up_when_it_took_longer_than_is_usual(
    began_ms: int, settled_ms: int | None, is_touched: bool
) -> None:
    """Whether it was final after the heal, or the system recovered before it."""
    assert touched(order(began_ms=began_ms, settled_ms=settled_ms)) == is_touched


def test_what_was_refused_was_not_held_up() -> None:
    """Its customer knows that nothing happened."""
    assert touched(order(began_ms=9_950, settled_ms=20_500, outcome=Outcome.FAILED)) == 0


def test_a_fault_that_never_healed_is_credited_with_nothing() -> None:
    """Its window says that it did not heal, which is worse."""
    assert touched(order(began_ms=9_950, settled_ms=20_500), window=replace(WINDOW, healed_ns=None)) == 0


def test_what_an_earlier_fault_may_still_hold_up_is_not_credited_to_the_next() -> None:
    """A harmless fault right after a real one would look effective: the boundary is the earlier one's heal."""
    held_up = order(began_ms=9_900, settled_ms=20_500)

    assert touched(held_up, healed_before_ms=9_901) == 0
    assert touched(held_up, healed_before_ms=9_900) == 1


def test_without_anything_before_the_storm_only_what_took_long_was_held_up() -> None:
    """Else killing what nobody needs, with the first operation, is credited with all that is in flight."""
    quick, slow = order(began_ms=19_900, settled_ms=20_100), order(began_ms=19_000, settled_ms=20_001)

    assert touched(quick, before=()) == 0
    assert touched(slow, before=()) == 1


def test_where_nobody_says_when_something_was_final_its_answer_has_to_do() -> None:
    """A system that cannot tell would have every fault look effective."""

    def final(*, began_ms: int, answered_ms: int) -> tuple[Operation, State]:
        operation, state = order(began_ms=began_ms, settled_ms=None)
        operation = replace(operation, key=f"{began_ms}-{answered_ms}", ended_ns=answered_ms * MS)
        return operation, replace(state, key=operation.key, state="DONE", is_final=True)

    usual = final(began_ms=1_000, answered_ms=1_100)

    assert touched(final(began_ms=19_950, answered_ms=20_100), before=(usual,)) == 0
    assert touched(final(began_ms=19_000, answered_ms=20_100), before=(usual,)) == 1
    assert touched(final(began_ms=15_000, answered_ms=15_050), before=(usual,)) == 0
