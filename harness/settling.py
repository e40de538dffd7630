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
    from harness.system_under_test import Client

_LOOK_EVERY_S = 0.05
_READS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The final reads. reached: whether everything became final in time."""

    states: tuple[State, ...]
    channel: Channel
    reached: bool


async def settle(
    client: Client,
    broker: BrokerRecords,
    streams: tuple[str, ...],
    operations: Sequence[Operation],
    *,
    within_s: float,
) -> Settled:
    """Wait at most `within_s` for everything to become final, then return the last read of every key."""
    accepted = {operation.key for operation in operations if operation.outcome is Outcome.OK}
    others = {operation.key for operation in operations} - accepted
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    states: dict[str, State] = {}
    waiting = accepted | others
    reached = False
    while True:
        idle = await broker.backlog(streams) == 0
        if idle or loop.time() >= deadline_s:
            # Reads begin only now: while the backlog drains, nearly every answer would be "not yet".
            states |= await _read_all(client, waiting)
            waiting = {key for key in waiting if key not in states or not _is_over(states[key], key in accepted)}
            reached = not waiting and idle
        if reached or loop.time() >= deadline_s:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    missing = (accepted | others) - states.keys()
    channel = Channel(
        name="states",
        expected=len(accepted | others),
        received=len(states),
        complete=not missing,
        why=f"{len(missing)} key(s) could not be read through the API, the first: {min(missing)}" if missing else "",
    )
    return Settled(states=tuple(states[key] for key in sorted(states)), channel=channel, reached=reached)


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
