"""`stormproof up`: start everything, print the addresses, wait for SIGINT or SIGTERM.

While it is up, anyone may place operations; Locust writes its history into the run directory. When it is stopped it
lets the system settle, collects the evidence and stops everything, so that `stormproof check` can judge the run. A
second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from harness.collection import history
from harness.collection.history import read_history
from harness.collection.load_summary import CANNOT_SAY, read_load_summary
from harness.collection.load_summary import FILE_NAME as SUMMARY_FILE_NAME
from harness.commands.conducting import choice_of, conduct, print_json, seed_of
from harness.environment.ports import ensure_free
from harness.errors import UsageError
from harness.plan import open_plan
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from harness.stage import Stage
    from harness.system_under_test import SystemUnderTest


async def execute(options: argparse.Namespace) -> int:
    """Stay up until told to stop. Ends with 0: what the run proves is for `stormproof check` to say."""
    system = configured_system()
    listen = dict(options.listen)
    _check(listen, system)
    choice = choice_of(options, system)
    plan = open_plan(system, experiment="up", seed=seed_of(options), choice=choice)

    async def drive(stage: Stage) -> int:
        stop = _stop_signal()
        _announce(stage, system, options)
        await stop.wait()
        stage.say("stopping: letting the system settle and collecting evidence (once more Ctrl-C ends it at once)")
        return _begun(stage.directory)

    outcome = await conduct(plan, system, drive, options, choice=choice, listen=listen)
    operations = next(channel for channel in outcome.judgement.channels if channel.name == "operations")
    if operations.received:
        print(f"{operations.received} operations on record: stormproof check {outcome.directory.path}", file=sys.stderr)
    return 0


def addresses(stage: Stage, system: SystemUnderTest) -> dict[str, object]:
    """Return what `up` announces: every process by role, the front door through its proxy.

    `nats_credentials` is a file that only this user can read (`source` it), never the secret itself.
    """
    environment = stage.environment
    found: dict[str, object] = {
        spec.name: f"http://{environment.address(spec.name)}" for spec in system.topology.processes
    }
    found[system.front] = f"http://{environment.wiring.via(system.entrance)}"
    return {
        **found,
        "nats": environment.nats_url,
        "nats_credentials": str(environment.nats_credentials),
        "toxiproxy": environment.toxiproxy_url,
        "otlp": environment.wiring.otlp_url,
        "run": str(stage.directory),
        "pid": os.getpid(),
    }


def _announce(stage: Stage, system: SystemUnderTest, options: argparse.Namespace) -> None:
    ready = addresses(stage, system)
    if options.json:
        print_json(ready)
        return
    width = max(map(len, ready))
    for name, value in ready.items():
        print(f"{name:<{width}} {value}")
    print("ready; Ctrl-C stops it", flush=True)


def _stop_signal() -> asyncio.Event:
    """Return an event that the first SIGINT or SIGTERM sets; the second one cancels the command."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    command = asyncio.current_task()

    def told() -> None:
        if stop.is_set() and command is not None:
            command.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    return stop


def _begun(directory: Path) -> int:
    """Return how many operations were begun: as the load says, else as many as are on record."""
    path = directory / history.FILE_NAME
    recorded = len(read_history(path)[0]) if path.is_file() else 0
    summary = directory / SUMMARY_FILE_NAME
    if not summary.is_file():
        return recorded
    load = read_load_summary(summary)
    return CANNOT_SAY if load is None else load.begun


def _check(listen: dict[str, str], system: SystemUnderTest) -> None:
    roles = {spec.name for spec in system.topology.processes}
    for role, address in listen.items():
        if role not in roles:
            raise UsageError(
                f"there is no process {role!r} to listen at {address}; there is: {', '.join(sorted(roles))}"
            )
        ensure_free(address)
