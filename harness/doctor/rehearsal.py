"""Starts each backend for real, with the configured system on it, and says how long that took.

Promises: every link answers before a backend is said to work; each rehearsal has an end, and leaves nothing.

Does not: build or pull anything: a backend whose parts are not all here is not started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.collection import otlp
from harness.doctor.ability import Ability, State, broken, works
from harness.doctor.examining import examine
from harness.doctor.report import POSTGRES_OPTION, TLS_OPTION, Rehearsal, Report, words_of
from harness.environment.choice import CLUSTER, CLUSTER_CONTAINER, CONTAINER, EMBEDDED, BackendChoice
from harness.environment.concurrency import shielded
from harness.environment.opening import open_environment
from harness.environment.ports import LOOPBACK
from harness.environment.processes.ownership import Ownership
from harness.environment.topology import Topology

WITHIN_S = 90.0

_OPTIONS_REHEARSED = (POSTGRES_OPTION, TLS_OPTION)
_BACKENDS_WITH_OPTIONS = (EMBEDDED, CONTAINER)


def rehearsals(external: BackendChoice | None) -> tuple[BackendChoice, ...]:
    """What there is to start: every backend as it is, and the options that change its parts."""
    plain = [BackendChoice(name=name) for name in (EMBEDDED, CONTAINER, CLUSTER, CLUSTER_CONTAINER)]
    varied = [
        BackendChoice(name=name, postgres=option == POSTGRES_OPTION, tls=option == TLS_OPTION)
        for name in _BACKENDS_WITH_OPTIONS
        for option in _OPTIONS_REHEARSED
    ]
    return (*plain, *varied, *([] if external is None else [external]))


async def rehearse(
    choice: BackendChoice, report: Report, topology: Topology, progress: Callable[[str], None]
) -> Rehearsal:
    """Start one of them, unless what is known of its parts says that it cannot be."""
    words = _words(choice)
    known = _known(choice, report)
    if known.state is not State.WORKS:
        return Rehearsal(words=words, ability=replace(known, why=f"not started: {known.why}"))
    progress(f"starting {' '.join(words) or choice.name}")
    ability = await examine(choice.name, partial(_start, choice, topology), within_s=WITHIN_S)
    return Rehearsal(words=words, ability=ability)


async def _start(choice: BackendChoice, topology: Topology) -> Ability:
    # The run directory is a scratch directory of its own: it goes with the doctor, however that ends.
    ownership = Ownership.take("doctor")
    try:
        return await _start_in(ownership.scratch_directory / "run", choice, topology)
    finally:
        await shielded(ownership.release())


async def _start_in(directory: Path, choice: BackendChoice, topology: Topology) -> Ability:
    directory.mkdir()  # noqa: ASYNC240 - one call, on a local disk
    began_s = time.monotonic()
    async with (
        otlp.receiving(directory / otlp.FILE_NAME, host=LOOPBACK, port=0) as receiver,
        open_environment(
            choice, topology, run_id="doctor", run_directory=directory, seed=0, otlp_url=receiver.url
        ) as environment,
    ):
        seconds = time.monotonic() - began_s
        for link in environment.links:
            seen = await environment.probe(link)
            if seen is not None:
                return broken(
                    choice.name, f"all started, and {link} does not answer: {seen}", "please report this line"
                )
        links = len(environment.links)
    return works(choice.name, f"all started, {links} links answer", seconds=seconds)


def _words(choice: BackendChoice) -> tuple[str, ...]:
    options = [POSTGRES_OPTION] * choice.postgres + [TLS_OPTION] * choice.tls
    return words_of(choice.name, *options)


def _known(choice: BackendChoice, report: Report) -> Ability:
    options: Mapping[str, bool] = {POSTGRES_OPTION: choice.postgres, TLS_OPTION: choice.tls}
    for option, is_chosen in options.items():
        if is_chosen:
            (spread,) = (each for each in report.options if each.ability.name == option)
            return spread.on[choice.name]
    return next(each for each in report.backends if each.name == choice.name)
