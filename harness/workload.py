"""The harness's own workload: an open loop at a steady rate.

Requests are sent when the schedule says, whether or not earlier ones have been answered; latency counts from the
intended start. At most `IN_FLIGHT_MAX` are in flight; a request that has to wait for room is sent late, and its latency
says so.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.stage import Stage
    from harness.system_under_test import Experiment, Request, SystemUnderTest

IN_FLIGHT_MAX = 4096
_NS = 1_000_000_000


async def place_steadily(system: SystemUnderTest, stage: Stage, experiment: Experiment, *, seed: int) -> int:
    """Place `rate_per_s * duration_s` operations and return how many were begun; all of them have ended."""
    count = max(1, round(experiment.rate_per_s * experiment.duration_s))
    requests = islice(system.requests(seed, experiment.workload), count)
    await place_all(requests, stage, rate_per_s=experiment.rate_per_s)
    return stage.history.begun


async def place_all(requests: Iterable[Request], stage: Stage, *, rate_per_s: float) -> None:
    """Place these requests, the first one now, and return when each has its outcome."""
    room = asyncio.Semaphore(IN_FLIGHT_MAX)
    loop = asyncio.get_running_loop()
    clock_ns, loop_s = time.time_ns(), loop.time()
    async with asyncio.TaskGroup() as group:
        for number, request in enumerate(requests):
            due_s = number / rate_per_s
            await asyncio.sleep(max(0.0, loop_s + due_s - loop.time()))
            await room.acquire()
            stage.history.begin()
            group.create_task(_place(stage, request, clock_ns + round(due_s * _NS), room))


async def _place(stage: Stage, request: Request, intended_ns: int, room: asyncio.Semaphore) -> None:
    try:
        stage.history.end(await stage.client.place(request, intended_ns))
    finally:
        room.release()
