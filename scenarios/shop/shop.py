"""The shop in a test's words: place orders, put it under a fault, look at a trace, judge."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from chaos.faults.fault import applied
from scenarios.shop.customer import cancellation_of
from scenarios.shop.producer import producer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaos.faults.fault import Fault
    from harness.invariants.invariant import Invariant
    from harness.invariants.judgement import Judgement
    from harness.live_run import LiveRun
    from harness.records import Operation
    from harness.traces import Trace
    from scenarios.shop.producer import Producer

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

    async def place_and_cancel_orders(self, *, count: int, rate_per_s: float = RATE_PER_S) -> tuple[Operation, ...]:
        """Carry out so many operations of customers of whom some change their minds."""
        return await self._run.place(count=count, rate_per_s=rate_per_s, workload="place-and-cancel")

    async def cancel(self, order: Operation) -> Operation:
        """Cancel one order and return the cancellation with its outcome."""
        (cancellation,) = await self._run.place_these([cancellation_of(order)], rate_per_s=RATE_PER_S)
        return cancellation

    async def settled(self, order: Operation, *states: str) -> str:
        """Return the order's state once it is one of these, or final if none is named."""
        return (await self._run.wait_settled(order, *states)).state

    @asynccontextmanager
    async def another_version(self) -> AsyncIterator[Producer]:
        """Publish events for the scope that our own services did not make."""
        async with producer(self._run.environment.broker) as other:
            yield other

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

    def states(self, *orders: str) -> list[str]:
        """Return what a customer saw of these orders in the end; only after `judge`."""
        with self._run.evidence() as evidence:
            seen = dict(evidence.query("SELECT key, state FROM states"))
        return [seen.get(order, "unread") for order in orders]

    def charged(self, *orders: str) -> list[int]:
        """Return how many cents the ledger says were taken for these orders; only after `judge`."""
        with self._run.evidence() as evidence:
            taken = dict(evidence.query("SELECT key, sum(amount_minor) FROM ledger WHERE kind = 'charge' GROUP BY key"))
        return [int(taken.get(order, 0)) for order in orders]

    def dead_letters(self) -> list[str]:
        """Return the subjects of the dead letters, one for each consumer that gave a message up; only after `judge`."""
        with self._run.evidence() as evidence:
            return [
                subject
                for (subject,) in evidence.query(
                    "SELECT subject FROM messages WHERE stream = 'DEADLETTERS' ORDER BY subject"
                )
            ]
