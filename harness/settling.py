"""Settling: waiting until nothing is in flight any more, and reading what a customer sees then.

The wait ends when the broker owes its durable consumers nothing and every accepted operation is final, or when the time
the system was given after the last heal is over. The final reads are evidence; they go through the public API.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import Channel, Outcome, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.collection.broker import BrokerRecords
    from harness.records import Operation
    from harness.system_under_test import Client, SystemUnderTest

_LOOK_EVERY_S = 0.05
_READS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The final reads, and whether every key could be read."""

    states: tuple[State, ...]
    channel: Channel


async def settle(
    client: Client,
    broker: BrokerRecords,
    system: SystemUnderTest,
    operations: Sequence[Operation],
) -> Settled:
    """Wait at most `system.settle_within_s` for everything to become final, then return the last read of every key.

    Every key means also those that nobody has on record as an operation, but the broker stored a message about.
    """
    accepted = {operation.key for operation in operations if operation.outcome is Outcome.OK}
    keys = {operation.key for operation in operations}
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + system.settle_within_s
    is_idle = False
    while not is_idle and loop.time() < deadline_s:
        # No reads yet: while the backlog drains, nearly every answer would be "not yet".
        is_idle = await broker.backlog(system.streams) == 0
        if not is_idle:
            await asyncio.sleep(_LOOK_EVERY_S)
    stored = await broker.keys(system.streams, system.key_of_message)
    accepted |= stored
    waiting = keys = keys | stored
    states: dict[str, State] = {}
    while True:
        states |= await _read_all(client, waiting)
        waiting = {key for key in waiting if key not in states or not _is_over(states[key], key in accepted)}
        if not waiting or loop.time() >= deadline_s:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    missing = keys - states.keys()
    channel = Channel(
        name="states",
        expected=len(keys),
        received=len(states),
        complete=not missing,
        why=f"{len(missing)} key(s) could not be read through the API, the first: {min(missing)}" if missing else "",
    )
    return Settled(states=tuple(states[key] for key in sorted(states)), channel=channel)


def _is_over(state: State, was_accepted: bool) -> bool:  # noqa: FBT001 - a private predicate of two values
    # An operation that was not accepted may have left nothing; absent is then an answer, not a wait.
    return state.is_final or (not was_accepted and state.state == "absent")


async def _read_all(client: Client, keys: set[str]) -> dict[str, State]:
    room = asyncio.Semaphore(_READS_AT_ONCE)
    states: dict[str, State] = {}

    async def read(key: str) -> None:
        async with room:
            state = await client.read(key)
        if state is not None:
            states[key] = state

    async with asyncio.TaskGroup() as group:
        for key in sorted(keys):
            group.create_task(read(key))
    return states
