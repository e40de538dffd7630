"""Payments dies in the middle of its work, twice, and comes back.

What it had in hand was delivered but not acknowledged; the broker delivers it again once AckWait is over. An order that
was acknowledged before it was charged is gone.

    python -m chaos.experiments.payments_kill --seed 7
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.experiment import Experiment, run_script
from chaos.faults.kill import Kill
from chaos.program import AfterOperations, FaultProgram, Step

if TYPE_CHECKING:
    import random

DOWN_S = 0.5


def two_kills(chance: random.Random) -> FaultProgram:
    """Kill payments early, and again when it has caught up."""
    first = chance.randint(60, 90)
    second = first + chance.randint(180, 240)
    return FaultProgram(
        steps=tuple(
            Step(when=AfterOperations(count=count), fault=Kill(process="payments"), hold_s=DOWN_S)
            for count in (first, second)
        )
    )


PAYMENTS_KILL = Experiment(
    name="payments-kill",
    summary="payments is killed twice with orders in hand, and started again half a second later",
    rate_per_s=120,
    duration_s=3.5,
    draw=two_kills,
)

if __name__ == "__main__":
    run_script(PAYMENTS_KILL)
