"""Load by Locust, as a drive of a run: a subprocess that places the orders and writes the history.

Promises: the history is in the run directory when it returns, and it says how many operations were begun; Locust is
gone when it returns, also when cancelled, and the guardian ends it should the harness be killed; a Locust that cannot
start or breaks is an error with the tail of its log.

Does not: import Locust, gevent or a locustfile (importing them patches the process), nor judge. The contract with a
locustfile is small: options `--host`, `-u`, `-r`, `--rate`, `--seed`, `--duration`; the history goes to the file named
by `STORMPROOF_OPERATIONS`; `load.json` beside it has the fields of `harness.collection.load_summary`, `begun` being -1
until it is known.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.collection.history import FILE_NAME as HISTORY
from harness.collection.load_summary import CANNOT_SAY, read_load_summary
from harness.collection.load_summary import FILE_NAME as SUMMARY_FILE_NAME
from harness.environment.concurrency import shielded
from harness.environment.processes.exit_watch import ExitWatch
from harness.environment.processes.supervised import Command, SupervisedProcess, launch, log_tail
from harness.environment.wiring import base_variables
from harness.errors import EnvironmentFailedError

if TYPE_CHECKING:
    from harness.records import LoadSummary
    from harness.stage import Stage
    from harness.system_under_test import LoadProfile, SystemUnderTest

OPERATIONS_VARIABLE = "STORMPROOF_OPERATIONS"

START_WITHIN_S = 30.0
DRAIN_WITHIN_S = 30.0
"""More than Locust's own bound on the drain (12 s), with room for a summary of some million operations."""

STOP_WITHIN_S = 3.0
KILL_WITHIN_S = 5.0
SAY_EVERY_S = 2.0

_HOLDS, _SOME_REQUESTS_FAILED = 0, 1
_READ_BYTES = 1024 * 1024


async def drive_with_locust(
    stage: Stage, system: SystemUnderTest, profile: LoadProfile, *, seed: int, rate_per_s: float, duration_s: float
) -> int:
    """Run a load profile against the stage and return how many operations were begun.

    Returns -1 when Locust was killed before it could say. Raises EnvironmentFailedError when it did not start, did not
    end in time, or broke; failed operations are not a broken Locust.
    """
    load = Load(seed=seed, rate_per_s=rate_per_s, duration_s=duration_s)
    locust = _start(stage, f"http://{stage.environment.wiring.via(system.entrance)}", profile, load)
    try:
        await _wait_for_end(stage, locust, load)
    finally:
        await shielded(_end(locust))
    return _begun(stage, locust)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of Locust."""

    seed: int
    rate_per_s: float
    duration_s: float

    @property
    def operations(self) -> int:
        """How many operations that makes."""
        return max(1, round(self.rate_per_s * self.duration_s))


def _start(stage: Stage, url: str, profile: LoadProfile, load: Load) -> SupervisedProcess:
    if not profile.locustfile.is_file():
        raise EnvironmentFailedError(
            f"load profile {profile.name!r} names a locustfile that is not there: {profile.locustfile}"
        )
    command = Command(
        name="locust",
        argv=(
            *(sys.executable, "-m", "locust", "-f", str(profile.locustfile), "--headless", "--only-summary"),
            *("--host", url, "-u", str(profile.users), "-r", str(profile.users)),
            *("--rate", repr(load.rate_per_s), "--seed", str(load.seed), "--duration", repr(load.duration_s)),
        ),
        environment=stage.environment.labelled(
            {**base_variables(stage.environment.scratch_directory), OPERATIONS_VARIABLE: str(stage.directory / HISTORY)}
        ),
        log_path=stage.directory / "logs" / "locust.log",
        stop_grace_s=STOP_WITHIN_S,
    )
    # Not through the supervisor: its record is of the system's processes, and an end by itself, which is what a load
    # test does, would be an unexpected exit there. The label is the same, so the guardian knows it.
    child = launch(command, boot=1, label={})
    return SupervisedProcess(command=command, boot=1, child=child, watch=ExitWatch(child))


async def _wait_for_end(stage: Stage, locust: SupervisedProcess, load: Load) -> None:
    stage.say(f"Locust asks for {load.rate_per_s:g} orders/s for {load.duration_s:g} s")
    began_s = time.monotonic()
    within_s = START_WITHIN_S + load.duration_s + DRAIN_WITHIN_S
    with (stage.directory / HISTORY).open("rb") as history:
        recorded = 0
        while await locust.watch.wait(SAY_EVERY_S) is None:
            while piece := history.read(_READ_BYTES):
                recorded += piece.count(b"\n")
            elapsed_s = time.monotonic() - began_s
            if elapsed_s > within_s:
                raise EnvironmentFailedError(
                    f"Locust still runs after {elapsed_s:.0f} s, {load.duration_s:g} s were asked; "
                    f"its log ({locust.command.log_path}) ends:\n{log_tail(locust.command.log_path)}"
                )
            stage.say(f"{recorded} of {load.operations} operations recorded after {elapsed_s:.0f} s")


async def _end(locust: SupervisedProcess) -> None:
    if locust.is_running:
        locust.signal(signal.SIGTERM)
        await locust.watch.wait(STOP_WITHIN_S)
    locust.signal_group(signal.SIGKILL)  # and whatever it started
    if await locust.watch.wait(KILL_WITHIN_S) is None:
        raise EnvironmentFailedError(f"Locust (pid {locust.pid}) still runs {KILL_WITHIN_S:g} s after SIGKILL")


def _begun(stage: Stage, locust: SupervisedProcess) -> int:
    exit_code = locust.watch.exit_code
    log_path = locust.command.log_path
    summary = read_load_summary(stage.directory / SUMMARY_FILE_NAME)
    if exit_code in (_HOLDS, _SOME_REQUESTS_FAILED) and summary is not None:
        stage.say(_sentence(summary))
        if summary.note:
            stage.say(summary.note)
        return summary.begun
    if exit_code is not None and exit_code < 0 and (stage.directory / HISTORY).stat().st_size:
        # What it had written is evidence all the same; the channel will say that it is not whole.
        stage.say(f"Locust died by {locust.how_it_ended} before it said how many operations it had begun")
        return CANNOT_SAY
    raise EnvironmentFailedError(
        f"Locust ended with {locust.how_it_ended} {'and without a' if summary is None else 'but with a'} summary; "
        f"its log ({log_path}) ends:\n{log_tail(log_path)}"
    )


def _sentence(summary: LoadSummary) -> str:
    return (
        f"Locust began {summary.begun} operations, {summary.rate_reached_per_s:g}/s of {summary.rate_asked_per_s:g}/s "
        f"asked; {summary.missed_slots} slots missed; "
        f"p50 {summary.p50_ms}, p99 {summary.p99_ms} ms from the intended start"
    )
