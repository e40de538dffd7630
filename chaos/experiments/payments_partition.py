"""Payments loses its broker while orders are in flight.

The provider stays reachable: payments can charge, but neither publish the outcome nor acknowledge the order. After the
heal every such order is delivered again. Nobody may be charged twice for it, and no order may be left behind.

    python -m chaos.experiments.payments_partition --seed 7
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.experiment import Experiment, run_script
from chaos.faults.partition import Partition
from chaos.program import AfterOperations, FaultProgram, Step

if TYPE_CHECKING:
    import random

HOLD_S = 3.0
"""Long enough for payments to notice the silence (two missed pings) and for AckWait to run out."""


def _draw(chance: random.Random) -> FaultProgram:
    partition = Partition(link="payments->nats")
    return FaultProgram(
        steps=(Step(when=AfterOperations(count=chance.randint(40, 60)), fault=partition, hold_s=HOLD_S),)
    )


PAYMENTS_PARTITION = Experiment(
    name="payments-partition",
    summary="the link payments->nats is cut for 3 s while orders are in flight",
    rate_per_s=120,
    duration_s=3.75,
    draw=_draw,
)

if __name__ == "__main__":
    run_script(PAYMENTS_PARTITION)
