"""Two ways to wait: for everything together, and to the end although cancelled; and whether a cancellation got lost.

Promises: `together` raises the first real error itself, not a group around it; `shielded` lets cleanup finish before a
cancellation goes on. Both own the tasks they make.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def together(*coroutines: Coroutine[object, object, object]) -> None:
    """Run all at once; when one fails the others are cancelled and its error is raised, the others' as notes."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as failures:
        first, *others = failures.exceptions
        for other in others:
            first.add_note(f"also: {other}")
        raise first from None


def ensure_not_cancelled() -> None:
    """Raise CancelledError when this task was cancelled and somebody kept that to themselves; not for use in cleanup.

    `asyncio.wait_for` before Python 3.12 does, when what it waits for is done at that very moment, and nats-py waits
    with nothing else. Ctrl-C would be without effect.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def shielded(coroutine: Coroutine[object, object, T]) -> T:
    """Run cleanup to its end even when the caller is cancelled; the cancellation is raised afterwards.

    The coroutine must bound itself: nothing here cuts it short.
    """
    task = asyncio.get_running_loop().create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            if not task.done():
                raise
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            cancelled.add_note(f"cleanup failed meanwhile: {task.exception()}")
        raise cancelled
    return task.result()
