"""A run that a test drives: start, place, break, look, judge.

The parts of a run live in one owner task, which is the same `carry_out` that the command uses; the test drives it from
outside, so a fixture may start and end it in different tasks. `judge` ends the run: the system settles and stops, the
evidence is frozen, and no more operations can be placed.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from harness.collecting import collect_spans
from harness.environment.choice import BackendChoice
from harness.environment.concurrency import shielded
from harness.evidence.store import FILE_NAME, Evidence
from harness.invariants.judgement import judge
from harness.plan import open_plan
from harness.records import Span
from harness.run import carry_out
from harness.system_under_test import DEFAULT_WORKLOAD
from harness.traces import Trace, trace_from
from harness.workload import place_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from harness.environment.backend import Environment
    from harness.invariants.invariant import Invariant
    from harness.invariants.judgement import Judgement
    from harness.planting import PlantedBug
    from harness.records import Operation, State
    from harness.run import Outcome
    from harness.runs import RunDirectory
    from harness.stage import Stage
    from harness.system_under_test import Request, SystemUnderTest

TRACE_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.02


class LiveRun:
    """One run of the system under test, driven by a test."""

    def __init__(
        self,
        system: SystemUnderTest,
        stage: Stage,
        seed: int,
        finish: asyncio.Event,
        owner: asyncio.Task[Outcome],
    ) -> None:
        """Drive a run that has started; made by `live_run`."""
        self.system = system
        self.stage = stage
        self._seed = seed
        self._streams: dict[str, Iterator[Request]] = {}
        self._finish = finish
        self._owner = owner
        self._evidence: Path | None = None

    @property
    def environment(self) -> Environment:
        """The running parts."""
        return self.stage.environment

    async def place(self, *, count: int, rate_per_s: float, workload: str = DEFAULT_WORKLOAD) -> tuple[Operation, ...]:
        """Place operations in an open loop and return them, with their outcomes, in the order they were asked."""
        requests = self._streams.setdefault(workload, self.system.requests(self._seed, workload))
        return await self.place_these(list(islice(requests, count)), rate_per_s=rate_per_s)

    async def place_these(self, requests: Sequence[Request], *, rate_per_s: float) -> tuple[Operation, ...]:
        """Place operations that the test made up itself."""
        if self._finish.is_set():
            raise RuntimeError("this run has been judged: nothing more can be placed in it")
        before = len(self.stage.history.operations)
        await place_all(requests, self.stage, rate_per_s=rate_per_s)
        return tuple(sorted(self.stage.history.operations[before:], key=lambda operation: operation.number))

    async def wait_settled(self, operation: Operation, *states: str) -> State:
        """Return the state of what the operation is about once it is one of these, or final if none is named.

        After `TRACE_WITHIN_S` it is returned as it then is. Raises TimeoutError when it cannot be read then.
        """
        deadline_s = asyncio.get_running_loop().time() + TRACE_WITHIN_S
        while True:
            state = await self.stage.client.read(operation.key)
            is_over = asyncio.get_running_loop().time() >= deadline_s
            if state is not None and (is_over or (state.state in states if states else state.is_final)):
                return state
            if is_over:
                raise TimeoutError(f"{operation.key} could not be read within {TRACE_WITHIN_S:g} s")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def trace_of(self, operation: Operation) -> Trace:
        """Return the operation's trace once it is final and none of its spans is open, or what there is by then."""
        deadline_s = asyncio.get_running_loop().time() + TRACE_WITHIN_S
        while True:
            state = await self.stage.client.read(operation.key)
            trace = trace_from(operation, await asyncio.to_thread(self._spans), self.stage.history.operations)
            is_over = state is not None and state.is_final and all(span.ended_ns is not None for span in trace.spans)
            if is_over or asyncio.get_running_loop().time() >= deadline_s:
                return trace
            await asyncio.sleep(_LOOK_EVERY_S)

    async def judge(self, *invariants: Invariant) -> Judgement:
        """End the run and judge it by these invariants, or by all that the system has."""
        self._finish.set()
        outcome = await asyncio.shield(self._owner)
        self._evidence = outcome.directory.path / FILE_NAME
        with self.evidence() as evidence:
            return judge(evidence, invariants or self.system.invariants)

    def evidence(self) -> Evidence:
        """Open the evidence of this run, which `judge` has frozen."""
        if self._evidence is None:
            raise RuntimeError("this run has not been judged: its evidence is not complete")
        return Evidence.open(self._evidence)

    def _spans(self) -> Sequence[Span]:
        rows, _channel = collect_spans(
            self.stage.receiver, self.environment.spool_directory, self.system, self.environment.supervisor.events
        )
        return [row for row in rows if isinstance(row, Span)]


@asynccontextmanager
async def live_run(
    system: SystemUnderTest,
    directory: RunDirectory,
    *,
    seed: int,
    choice: BackendChoice | None = None,
    bug: PlantedBug | None = None,
) -> AsyncIterator[LiveRun]:
    """Start the system and yield a run to drive; whatever happens, nothing of it is left at the end.

    choice: where the parts come from; embedded when None.
    """
    choice = choice or BackendChoice()
    started: asyncio.Future[Stage] = asyncio.get_running_loop().create_future()
    finish = asyncio.Event()

    async def drive(stage: Stage) -> int:
        started.set_result(stage)
        await finish.wait()
        return stage.history.begun

    plan = open_plan(system, experiment="live", seed=seed, choice=choice, bug=bug)
    lines: list[str] = []
    began_s = time.monotonic()
    owner = asyncio.create_task(
        carry_out(
            plan,
            system,
            directory,
            drive,
            say=lambda line: lines.append(f"{time.monotonic() - began_s:7.2f} s  {line}"),
            choice=choice,
            bug=bug,
        )
    )
    try:
        waiting: set[asyncio.Future[Any]] = {owner, started}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            owner.result()
        yield LiveRun(system, started.result(), seed, finish, owner)
    finally:
        if not owner.done():
            owner.cancel()
        try:
            await shielded(asyncio.wait({owner}))
        finally:
            text = "\n".join(lines) + "\n"
            (directory.path / "progress.log").write_text(text, encoding="utf-8")
        if not owner.cancelled():
            owner.result()  # a cleanup that failed must not pass in silence
