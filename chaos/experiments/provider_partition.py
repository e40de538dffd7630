"""Payments loses the payment provider while orders are in flight.

Some charges were made and their answers are lost: asked again, the provider must answer with those. The circuit breaker
opens, and stays open after the heal until its time is over; orders are taken all the while, none may be left behind,
and nobody may be charged twice.

    python -m chaos.experiments.provider_partition --seed 7
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.experiment import Experiment, run_script
from chaos.faults.partition import Partition
from chaos.program import AfterOperations, FaultProgram, Step

if TYPE_CHECKING:
    import random

HOLD_S = 3.0
"""Long enough for what is in flight to be lost; shorter than the breaker stays open."""


def _draw(chance: random.Random) -> FaultProgram:
    partition = Partition(link="payments->provider")
    return FaultProgram(
        steps=(Step(when=AfterOperations(count=chance.randint(40, 60)), fault=partition, hold_s=HOLD_S),)
    )


PROVIDER_PARTITION = Experiment(
    name="provider-partition",
    summary="the link payments->provider is cut for 3 s while orders are in flight, and the breaker opens",
    rate_per_s=120,
    duration_s=3.75,
    draw=_draw,
)

if __name__ == "__main__":
    run_script(PROVIDER_PARTITION)
