"""A fault program: an ordered list of steps, each with a trigger, a fault and a dwell time.

A program is data. It can be written into `plan.json`, compared, and played by the nemesis; nothing in it is random by
the time it exists.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chaos.faults.fault import applied, unproved_window
from harness.errors import PlanError

if TYPE_CHECKING:
    from chaos.faults.fault import Fault
    from harness.environment.backend import Environment
    from harness.stage import Stage

TRIGGER_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterOperations:
    """Wait until the workload has begun this many operations."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(f"count={self.count} operations cannot be waited for: it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """When, which fault, how long. hold_s: how long the fault stays in force, 0 or more."""

    when: AfterOperations
    fault: Fault
    hold_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.hold_s < float("inf"):
            raise PlanError(f"hold_s={self.hold_s} is not a time that a fault can be held")

    def plan(self) -> dict[str, object]:
        """Return it as a JSON-able object."""
        return {"after_operations": self.when.count, **self.fault.plan(), "hold_s": self.hold_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultProgram:
    """Steps, played one after the other."""

    steps: tuple[Step, ...]

    def plan(self) -> list[dict[str, object]]:
        """Return the steps as JSON-able objects."""
        return [step.plan() for step in self.steps]

    def check(self, environment: Environment) -> None:
        """Raise UsageError when a step cannot be played there: its target is not there, or must not be harmed."""
        for step in self.steps:
            step.fault.on(environment)

    async def play(self, stage: Stage) -> None:
        """Play every step in order, and record a fault window for each, also for one whose trigger never came."""
        for number, step in enumerate(self.steps):
            if await _triggered(step, stage, number):
                async with applied(step.fault, stage, number=number):
                    await asyncio.sleep(step.hold_s)


async def _triggered(step: Step, stage: Stage, number: int) -> bool:
    try:
        async with asyncio.timeout(TRIGGER_WITHIN_S):
            await stage.history.wait_begun(step.when.count)
    except TimeoutError:
        why = (
            f"its trigger never came: {stage.history.begun} operations began within {TRIGGER_WITHIN_S:g} s, "
            f"{step.when.count} were waited for"
        )
        window = unproved_window(step.fault, number=number, why=why)
        stage.record(replace(window, healed_ns=window.began_ns))
        return False
    return True
