"""Fault programs are data: the same seed gives the same one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.experiments.payments_partition import PAYMENTS_PARTITION
from chaos.faults.kill import Kill
from chaos.faults.partition import Partition
from chaos.program import AfterOperations, FaultProgram, Step
from harness.errors import PlanError
from harness.plan import digest_of_requests
from scenarios.shop import SHOP


@given(seed=st.integers(min_value=0, max_value=2**63 - 1))
@pytest.mark.parametrize("experiment", SHOP.experiments, ids=lambda experiment: experiment.name)
def test_the_same_seed_gives_the_same_program(experiment: object, seed: int) -> None:
    """Drawn twice, written down twice, equal."""
    named = SHOP.experiment(experiment.name)  # type: ignore[attr-defined]  # parametrized with experiments
    assert json.dumps(named.program(seed).plan()) == json.dumps(named.program(seed).plan())


@pytest.mark.parametrize("experiment", SHOP.experiments, ids=lambda experiment: experiment.name)
def test_different_seeds_give_different_programs(experiment: object) -> None:
    """Randomness is there, and it comes from the seed."""
    named = SHOP.experiment(experiment.name)  # type: ignore[attr-defined]  # as above
    assert len({json.dumps(named.program(seed).plan()) for seed in range(50)}) > 10


def test_the_same_seed_gives_the_same_requests() -> None:
    """The digest in the plan tells two runs apart only when their requests differ."""
    experiment = PAYMENTS_PARTITION
    first = digest_of_requests(SHOP, experiment, 7)

    assert digest_of_requests(SHOP, experiment, 7) == first
    assert digest_of_requests(SHOP, experiment, 8) != first
    assert digest_of_requests(SHOP, replace(experiment, duration_s=9), 7) != first
    assert digest_of_requests(SHOP, replace(experiment, workload="place-and-cancel"), 7) != first


def test_a_program_is_written_down_in_full() -> None:
    """What `plan.json` shows is what will be played."""
    program = FaultProgram(
        steps=(
            Step(when=AfterOperations(count=5), fault=Partition(link="payments->nats"), hold_s=3),
            Step(when=AfterOperations(count=9), fault=Kill(process="payments"), hold_s=0.5),
        )
    )

    assert program.plan() == [
        {"after_operations": 5, "fault": "partition", "link": "payments->nats", "direction": "both", "hold_s": 3},
        {"after_operations": 9, "fault": "kill", "process": "payments", "hold_s": 0.5},
    ]


@pytest.mark.parametrize("hold_s", [-1, float("nan"), float("inf")])
def test_a_dwell_time_that_is_no_time_is_refused_at_birth(hold_s: float) -> None:
    """The message names the value."""
    with pytest.raises(PlanError, match="hold_s="):
        Step(when=AfterOperations(count=1), fault=Kill(process="payments"), hold_s=hold_s)


def test_a_trigger_before_the_first_operation_is_refused_at_birth() -> None:
    """There is nothing in flight to harm."""
    with pytest.raises(PlanError, match="count=0"):
        AfterOperations(count=0)
