"""Orders loses its broker while customers are ordering.

A customer who is answered 202 in the partition was promised something that the broker never heard of, unless orders
waited for the broker's acknowledgement, as it must.

    python -m chaos.experiments.orders_partition --seed 7
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.experiment import Experiment, run_script
from chaos.faults.partition import Partition
from chaos.program import AfterOperations, FaultProgram, Step

if TYPE_CHECKING:
    import random

HOLD_S = 2.5
"""Shorter than the 5 s that orders waits for an acknowledgement, so that customers are kept waiting, not refused."""


def _draw(chance: random.Random) -> FaultProgram:
    partition = Partition(link="orders->nats")
    return FaultProgram(
        steps=(Step(when=AfterOperations(count=chance.randint(40, 60)), fault=partition, hold_s=HOLD_S),)
    )


ORDERS_PARTITION = Experiment(
    name="orders-partition",
    summary="the link orders->nats is cut for 2.5 s while customers are ordering",
    rate_per_s=120,
    duration_s=3.25,
    draw=_draw,
)

if __name__ == "__main__":
    run_script(ORDERS_PARTITION)
