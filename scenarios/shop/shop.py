"""The shop in a test's words: place orders, put it under a fault, look at a trace, judge."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from chaos.faults.fault import applied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaos.faults.fault import Fault
    from harness.invariants.invariant import Invariant
    from harness.invariants.judgement import Judgement
    from harness.live_run import LiveRun
    from harness.records import Operation
    from harness.traces import Trace

RATE_PER_S = 100.0


class Shop:
    """The running shop, driven by a test."""

    def __init__(self, run: LiveRun) -> None:
        """Drive this run."""
        self._run = run

    async def place_order(self) -> Operation:
        """Place one order and return it with its outcome."""
        (order,) = await self._run.place(count=1, rate_per_s=RATE_PER_S)
        return order

    async def place_orders(self, *, count: int, rate_per_s: float = RATE_PER_S) -> tuple[Operation, ...]:
        """Place orders in an open loop and return when each has its outcome."""
        return await self._run.place(count=count, rate_per_s=rate_per_s)

    @asynccontextmanager
    async def under(self, fault: Fault) -> AsyncIterator[None]:
        """Keep a fault in force for the scope; its window becomes evidence."""
        async with applied(fault, self._run.stage, number=len(self._run.stage.windows)):
            yield

    async def trace_of(self, order: Operation) -> Trace:
        """Return the order's trace, complete."""
        return await self._run.trace_of(order)

    async def judge(self, *invariants: Invariant) -> Judgement:
        """End the run and judge it; without arguments by every invariant of the shop."""
        return await self._run.judge(*invariants)
