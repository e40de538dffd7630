"""Settling: waiting until nothing is in flight any more, and reading what a customer sees then.

The wait ends when the broker owes its durable consumers nothing and every accepted operation is final, or when the time
the system was given after the last heal is over. The final reads are evidence; they go through the public API.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from harness.environment.concurrency import ensure_not_cancelled
from harness.records import Channel, Outcome, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.collection.broker import BrokerRecords
    from harness.records import Message, Operation
    from harness.system_under_test import Client, SystemUnderTest

_LOOK_EVERY_S = 0.05
_READS_AT_ONCE = 32
_LAST_READS_WITHIN_S = 10.0
"""The reads after the deadline may take so long, all together; an API that hangs must not hang us."""


async def settle(
    client: Client,
    broker: BrokerRecords,
    system: SystemUnderTest,
    operations: Sequence[Operation],
) -> tuple[State, ...]:
    """Wait at most `system.settle_within_s` for everything to become final, then return the last read of every key.

    Every key means also those that nobody has on record as an operation, but the broker stored a message about. A key
    whose last read got no answer has no state: an older read is not what a customer sees now.
    """
    accepted = {operation.key for operation in operations if operation.outcome is Outcome.OK}
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + system.settle_within_s
    while loop.time() < deadline_s:
        # No reads yet: while the backlog drains, nearly every answer would be "not yet".
        if await broker.backlog(system.streams) == 0:
            break
        ensure_not_cancelled()
        await asyncio.sleep(_LOOK_EVERY_S)
    stored = await broker.keys(system.streams, system.key_of_message)
    accepted |= stored
    waiting = {operation.key for operation in operations} | stored
    states: dict[str, State] = {}
    while True:
        # The last reads begin after the deadline, so that nothing is called late which was in time.
        is_last = loop.time() >= deadline_s
        within_s = max(_LAST_READS_WITHIN_S, deadline_s - loop.time())
        for key, state in (await _read_all(client, waiting, within_s=within_s)).items():
            if state is None:
                states.pop(key, None)
            else:
                states[key] = state
        waiting = {key for key in waiting if key not in states or not _is_over(states[key], key in accepted)}
        if not waiting or is_last:
            return tuple(states[key] for key in sorted(states))
        await asyncio.sleep(_LOOK_EVERY_S)


def states_channel(states: Sequence[State], operations: Sequence[Operation], messages: Sequence[Message]) -> Channel:
    """Say whether every key that anybody knows of has a final read.

    messages: as read at the very end, so that an order which arrived after the reads is missed, not overlooked; and so
    is one that a customer saw absent before the broker stored it.
    """
    stored_ns = {row.key: row.stored_ns for row in sorted(messages, key=lambda row: row.stored_ns)}
    too_early = {row.key for row in states if row.state == "absent" and stored_ns.get(row.key, 0) > row.read_ns}
    keys = {operation.key for operation in operations} | {row.key for row in messages if row.key is not None}
    missing = keys - ({state.key for state in states} - too_early)
    why = f"{len(missing)} key(s) have no final read, the first: {min(missing)}" if missing else ""
    return Channel(name="states", expected=len(keys), received=len(keys) - len(missing), complete=not missing, why=why)


def _is_over(state: State, was_accepted: bool) -> bool:  # noqa: FBT001 - a private predicate of two values
    # An operation that was not accepted may have left nothing; absent is then an answer, not a wait.
    return state.is_final or (not was_accepted and state.state == "absent")


async def _read_all(client: Client, keys: set[str], *, within_s: float) -> dict[str, State | None]:
    room = asyncio.Semaphore(_READS_AT_ONCE)
    states: dict[str, State | None] = {}

    async def read(key: str) -> None:
        async with room:
            states[key] = await client.read(key)

    with contextlib.suppress(TimeoutError):  # what was not read by then is missing, and says so
        async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
            for key in sorted(keys):
                group.create_task(read(key))
    return {key: states.get(key) for key in keys}
