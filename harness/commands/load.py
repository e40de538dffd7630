"""`stormproof load PROFILE`: drive with Locust, then judge every single order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.commands.conducting import choice_of, conduct, print_json, seed_of, tell
from harness.load import drive_with_locust
from harness.plan import open_plan
from harness.report.document import verdict_document
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse

    from harness.stage import Stage


async def execute(options: argparse.Namespace) -> int:
    """Run Locust against the system, let it settle, judge; the exit code is the verdict's."""
    system = configured_system()
    profile = system.load_profile(options.profile)
    rate_per_s = profile.rate_per_s if options.rate is None else options.rate
    duration_s = profile.duration_s if options.duration is None else options.duration
    seed = seed_of(options)
    choice = choice_of(options, system)
    plan = open_plan(
        system,
        experiment=f"load:{profile.name}",
        seed=seed,
        choice=choice,
        rate_per_s=rate_per_s,
        duration_s=duration_s,
    )

    async def drive(stage: Stage) -> int:
        return await drive_with_locust(stage, system, profile, seed=seed, rate_per_s=rate_per_s, duration_s=duration_s)

    outcome = await conduct(plan, system, drive, options, choice=choice)
    tell(outcome, options)
    if options.json:
        print_json(verdict_document(outcome))
    return outcome.judgement.state.exit_code
