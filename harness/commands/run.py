"""`stormproof run EXPERIMENT...`: carry out, judge, report."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from harness.commands.conducting import choice_of, conduct, print_json, seed_of, tell
from harness.errors import StormproofError, UsageError, leaf_of
from harness.invariants.verdict import VIOLATED, worst
from harness.plan import Plan, digest_of_requests
from harness.planting import check_bug, read_bug
from harness.report.document import verdict_document
from harness.system_under_test import configured_system
from harness.workload import place_steadily

if TYPE_CHECKING:
    import argparse

    from harness.environment.choice import BackendChoice
    from harness.planting import PlantedBug
    from harness.run import Outcome
    from harness.stage import Stage
    from harness.system_under_test import Experiment, SystemUnderTest

SCHEMA = "stormproof.verdicts/1"


async def execute(options: argparse.Namespace) -> int:
    """Carry out every experiment that was named; the exit code is that of the worst verdict.

    One that breaks ends the command, and keeps the verdicts there are: VIOLATED counts for more than a broken harness.
    """
    system = configured_system()
    experiments = [system.experiment(name) for name in options.experiments]
    bug = None if options.mutant is None else read_bug(options.mutant)
    if bug is not None:
        check_bug(bug, system)
    choice = choice_of(options, system)
    for experiment in experiments:
        ensure_possible(experiment, choice)  # all of them, before the first begins
    seed = seed_of(options)
    outcomes: list[Outcome] = []
    broken: StormproofError | None = None
    for experiment in experiments:
        try:
            outcomes.append(await carry_out_experiment(system, experiment, seed, options, bug))
        except (StormproofError, ExceptionGroup) as error:
            ours = leaf_of(error)
            if not outcomes or not isinstance(ours, StormproofError):
                raise
            broken = ours
            print(f"stormproof: {experiment.name}: {broken}", file=sys.stderr)
            break
        tell(outcomes[-1], options)
    ruling = worst(outcome.judgement.state for outcome in outcomes)
    if options.json:
        documents = [verdict_document(outcome) for outcome in outcomes]
        if len(documents) == 1:
            print_json(documents[0])
        else:
            print_json({"schema": SCHEMA, "verdict": ruling.value, "exit_code": ruling.exit_code, "runs": documents})
    return ruling.exit_code if broken is None or ruling is VIOLATED else broken.exit_code


def ensure_possible(experiment: Experiment, choice: BackendChoice) -> None:
    """Raise UsageError when the experiment cannot be carried out there."""
    if experiment.backends and choice.name not in experiment.backends:
        raise UsageError(
            f"experiment {experiment.name!r} cannot be carried out on {choice.name}: "
            f"add --backend {' or '.join(experiment.backends)}"
        )


async def carry_out_experiment(
    system: SystemUnderTest,
    experiment: Experiment,
    seed: int,
    options: argparse.Namespace,
    bug: PlantedBug | None,
) -> Outcome:
    """Carry out one experiment: steady load, and its fault program meanwhile."""
    program = experiment.program(seed)
    choice = choice_of(options, system)
    plan = Plan(
        system=system.name,
        experiment=experiment.name,
        seed=seed,
        backend=choice.name,
        rate_per_s=experiment.rate_per_s,
        duration_s=experiment.duration_s,
        requests_sha256=digest_of_requests(system, experiment, seed),
        program=program.plan(),
        mutant=None if bug is None else str(bug.path),
        backend_words=choice.words(),
    )

    async def drive(stage: Stage) -> int:
        program.check(stage.environment)  # before anything is placed that nobody will judge
        async with asyncio.TaskGroup() as group:
            placing = group.create_task(place_steadily(system, stage, experiment, seed=seed))
            group.create_task(program.play(stage))
        return placing.result()

    return await conduct(plan, system, drive, options, choice=choice, bug=bug)
