"""A fault is a scope: it is injected on entry, healed on exit, and both are verified.

Each kind of fault says how to inject, heal and verify itself, and what it can prove it caught. `applied` is the one
place that knows the order: it heals whatever happens, shielded from cancellation and within a bound, and records the
fault window. A fault that cannot be injected or healed does not stop the run; its window says so, and the run is
UNKNOWN.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from harness.environment.concurrency import shielded
from harness.errors import StormproofError
from harness.records import FaultWindow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from harness.environment.backend import Environment
    from harness.stage import Stage

INJECT_WITHIN_S = 5.0
HEAL_WITHIN_S = 30.0

_FAILURES = (StormproofError, OSError, ValueError)
"""What an injection, a heal or a measurement may fail with; it then stands in the window, and the run is UNKNOWN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grip:
    """What a fault can prove it caught: bytes that a proxy swallowed, processes that it killed."""

    caught: int
    unit: str


class Injectable(Protocol):
    """A fault bound to one environment; it remembers what it needs in order to heal."""

    async def inject(self) -> None:
        """Do the harm and return when it is seen to be in force."""

    async def heal(self) -> None:
        """Undo the fault and return when a probe has seen it undone. Safe to call after a partial injection."""

    async def grip(self) -> Grip:
        """Say, once healed, what the fault caught."""


class Fault(Protocol):
    """One kind of harm to one target. Data: a frozen dataclass that can be written into a plan."""

    @property
    def name(self) -> str:
        """The kind: `partition`."""

    @property
    def target(self) -> str:
        """What it harms: a link (`payments->nats`) or a role (`payments`)."""

    def plan(self) -> dict[str, object]:
        """Return it as a JSON-able object."""

    def on(self, environment: Environment) -> Injectable:
        """Bind it to a running environment. Raises UsageError when the target does not exist there."""


@asynccontextmanager
async def applied(fault: Fault, stage: Stage, *, number: int) -> AsyncIterator[None]:
    """Keep a fault in force for the scope, and record its window.

    number: the step's place in the fault program.
    """
    injectable = fault.on(stage.environment)
    # On record from the first moment: whoever judges meanwhile must know that a fault is in force.
    window = unproved_window(fault, number=number, why="it was still in force when the run was judged")
    stage.record(window)
    why_not = "its injection was interrupted"
    try:
        why_not = await _attempt(injectable.inject(), INJECT_WITHIN_S, "injected")
        if not why_not:
            stage.say(f"{fault.name} on {fault.target}: in force")
        yield
    finally:
        await shielded(_heal(window, injectable, stage, why_not))


def unproved_window(fault: Fault, *, number: int, why: str) -> FaultWindow:
    """Return a window that begins now, has not healed, and proves nothing yet."""
    return FaultWindow(
        number=number,
        name=fault.name,
        target=fault.target,
        began_ns=time.time_ns(),
        healed_ns=None,
        grip=0,
        grip_unit="evidence",
        touched=0,
        verified=False,
        why=why,
    )


async def _heal(window: FaultWindow, injectable: Injectable, stage: Stage, why_not: str) -> None:
    why_unhealed = await _attempt(injectable.heal(), HEAL_WITHIN_S, "healed")
    healed_ns = time.time_ns()
    grip = Grip(caught=window.grip, unit=window.grip_unit)
    why_ungripped = ""
    if not why_unhealed:
        stage.say(f"{window.name} on {window.target}: healed after {(healed_ns - window.began_ns) / 1e9:.2f} s")
        try:
            grip = await injectable.grip()
        except _FAILURES as error:
            why_ungripped = f"what it caught could not be measured: {error}"
    whys = [why for why in (why_not, why_unhealed, why_ungripped) if why]
    stage.record(
        replace(
            window,
            healed_ns=None if why_unhealed else healed_ns,
            grip=grip.caught,
            grip_unit=grip.unit,
            verified=not whys,
            why="; ".join(whys),
        )
    )


async def _attempt(step: Coroutine[object, object, None], within_s: float, done: str) -> str:
    """Return an empty string when the step succeeded, else one sentence why not."""
    try:
        async with asyncio.timeout(within_s):
            await step
    except TimeoutError:
        return f"it could not be {done} within {within_s:g} s"
    except _FAILURES as error:
        return f"it could not be {done}: {error}"
    return ""
