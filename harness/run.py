"""A run, from plan to verdict. The page to read first.

    start the real parts -> drive (load, and harm meanwhile) -> let it settle -> stop the system
    -> collect every channel -> freeze the evidence -> judge

Left of the evidence things act; right of it everything is a pure function of what is on disk, so `judge_again` gives
the same verdict later, without a broker.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.collection import history, load_summary, otlp
from harness.collection.history import History, operations_channel, read_history
from harness.collection.load_summary import read_load_summary
from harness.environment.choice import BackendChoice
from harness.environment.concurrency import ensure_not_cancelled
from harness.environment.external import external_access
from harness.environment.opening import open_environment
from harness.environment.soundness import ensure_sound
from harness.invariants.judgement import Judgement, judge
from harness.planting import start_planted
from harness.settling import settle
from harness.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.environment.nats.access import BrokerAccess
    from harness.plan import Plan
    from harness.planting import PlantedBug
    from harness.records import LoadSummary
    from harness.runs import RunDirectory
    from harness.system_under_test import Drive, SystemUnderTest


_SLOTS_SHARE_MIN = 0.99
"""A schedule may round its last slots off; what is less than this share of the plan was cut short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that has been judged. timings: seconds of each part, in the order they happened."""

    plan: Plan
    directory: RunDirectory
    judgement: Judgement
    timings: Mapping[str, float]


async def carry_out(
    plan: Plan,
    system: SystemUnderTest,
    directory: RunDirectory,
    drive: Drive,
    *,
    say: Callable[[str], None],
    choice: BackendChoice | None = None,
    bug: PlantedBug | None = None,
    listen: Mapping[str, str] | None = None,
) -> Outcome:
    """Start the real parts, drive them, let them settle, and judge what is on record.

    drive: places operations and does harm; it returns how many operations it began.
    choice: where the parts come from, with the secrets that the plan must not keep; embedded when None.
    listen: fixed `host:port` by role, for people who want to know the address beforehand.
    """
    timings = Timings()
    choice = choice or BackendChoice()
    plan.write(directory.path)
    if choice.is_external:
        await _ensure_room_on(external_access(choice), system)
    async with AsyncExitStack() as scope:
        # DuckDB, numpy and nats-py cost 0.4 s to import; they are imported while the processes boot (D9).
        imports = asyncio.get_running_loop().run_in_executor(None, importlib.import_module, "harness.collecting")
        with timings.measuring("start"):
            receiver = await scope.enter_async_context(
                otlp.receiving(directory.path / otlp.FILE_NAME, host="127.0.0.1", port=0)
            )
            environment = await scope.enter_async_context(
                open_environment(
                    choice,
                    system.topology,
                    run_id=directory.id,
                    run_directory=directory.path,
                    seed=plan.seed,
                    otlp_url=receiver.url,
                    progress=say,
                    listen=listen or {},
                    start_wrapper=start_planted(bug),
                )
            )
            await imports
            from harness.collecting import broker_records, collect  # noqa: PLC0415 - see above

            broker = await scope.enter_async_context(broker_records(environment.broker))
            await broker.capture_advisories(replicas=environment.wiring.replicas)
            if choice.is_external:
                scope.push_async_callback(broker.remove_advisories)
            client = await scope.enter_async_context(system.client(f"http://{environment.wiring.via(system.entrance)}"))
        stage = Stage(
            environment=environment,
            history=scope.enter_context(closing(History(directory.path / history.FILE_NAME))),
            client=client,
            receiver=receiver,
            directory=directory.path,
            say=say,
        )
        ensure_not_cancelled()
        with timings.measuring("drive"):
            begun = await drive(stage)
        await ensure_sound(environment)
        with timings.measuring("settle"):
            operations, torn = read_history(directory.path / history.FILE_NAME)
            say(f"{len(operations)} operations placed; waiting until nothing is in flight")
            states = await settle(client, broker, system, operations)
        await ensure_sound(environment)
        ensure_not_cancelled()
        with timings.measuring("stop"):
            await environment.stop_processes()
        with timings.measuring("collect"):
            evidence = await collect(
                system,
                environment,
                broker,
                receiver,
                operations=operations,
                operations_channel=operations_channel(begun, operations, torn),
                states=states,
                windows=stage.windows,
                load=_load(plan, directory),
                directory=directory.path,
            )
    with evidence, timings.measuring("judge"):
        judgement = judge(evidence, system.invariants, planned_faults=len(plan.program))
    return Outcome(plan=plan, directory=directory, judgement=judgement, timings=timings.seconds)


def judge_again(directory: RunDirectory, system: SystemUnderTest, plan: Plan) -> Outcome:
    """Judge the evidence of an earlier run with today's invariants; touches nothing but its own process.

    Raises UsageError when the run is of another system.
    """
    plan.ensure_of(system)
    timings = Timings()
    from harness.evidence.store import FILE_NAME, Evidence  # noqa: PLC0415 - see carry_out

    with timings.measuring("judge"), Evidence.open(directory.path / FILE_NAME) as evidence:
        judgement = judge(evidence, system.invariants, planned_faults=len(plan.program))
    return Outcome(plan=plan, directory=directory, judgement=judgement, timings=timings.seconds)


async def _ensure_room_on(access: BrokerAccess, system: SystemUnderTest) -> None:
    """See that somebody's broker holds nothing that the system would take for this run's, before it starts."""
    from harness.collecting import broker_records  # noqa: PLC0415 - see carry_out

    async with broker_records(access) as broker:
        await broker.ensure_unused(system.streams)
        await broker.remove_advisories()  # of a run that was killed


def _load(plan: Plan, directory: RunDirectory) -> LoadSummary | None:
    """Read what the load generator says of itself, and hold it against the plan.

    One that was stopped early has missed no slot of its own, and most of what was asked.
    """
    load = read_load_summary(directory.path / load_summary.FILE_NAME)
    asked = round(plan.rate_per_s * plan.duration_s)
    if load is None or load.slots >= asked * _SLOTS_SHARE_MIN:
        return load
    return replace(load, slots=asked, missed_slots=asked - load.begun)


@dataclass(slots=True, kw_only=True)
class Timings:
    """How long each part of a run took, in seconds, in the order they happened."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Add the time spent in the scope to a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.monotonic() - began, 3)
