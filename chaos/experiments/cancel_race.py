"""Customers change their minds at once, while payments dies in the middle of its work, twice.

A cancellation meets its order before, during and after the charge. Whatever the order of events, an order ends either
never charged, or charged once and refunded once.

    python -m chaos.experiments.cancel_race --seed 7
"""

from __future__ import annotations

from chaos.experiment import Experiment, run_script
from chaos.experiments.payments_kill import two_kills

CANCEL_RACE = Experiment(
    name="cancel-race",
    summary="customers cancel every fourth order right after placing it, while payments is killed twice",
    rate_per_s=120,
    duration_s=3.5,
    draw=two_kills,
    workload="place-and-cancel",
)

if __name__ == "__main__":
    run_script(CANCEL_RACE)
