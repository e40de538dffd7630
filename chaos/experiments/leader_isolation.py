"""The broker's leader is cut off from everybody, and does not know that it leads no more.

Of three servers one leads the stream of orders. It hears neither its peers nor its clients; the others elect another
one after 4 to 9 s; then it comes back with what it believed. What was acknowledged before, meanwhile and after must be
there, once. An order that orders could not store in time may have been refused, but not forgotten after a 202.

    python -m chaos.experiments.leader_isolation --backend cluster --seed 7
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.experiment import Experiment, run_script
from chaos.faults.isolation import From, Isolate
from chaos.program import AfterOperations, FaultProgram, Step

if TYPE_CHECKING:
    import random

HOLD_S = 10.0
"""Longer than any election takes, so that there are two who lead, of whom one is wrong."""


def _draw(chance: random.Random) -> FaultProgram:
    isolation = Isolate(node="leader:ORDERS", from_=From.BOTH)
    return FaultProgram(
        steps=(Step(when=AfterOperations(count=chance.randint(40, 60)), fault=isolation, hold_s=HOLD_S),)
    )


LEADER_ISOLATION = Experiment(
    name="leader-isolation",
    summary="the leader of ORDERS hears neither its peers nor its clients for 10 s while customers are ordering",
    rate_per_s=60,
    duration_s=12,
    draw=_draw,
    backends=("cluster", "cluster-container"),
)

if __name__ == "__main__":
    run_script(LEADER_ISOLATION)
