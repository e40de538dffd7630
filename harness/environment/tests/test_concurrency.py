"""A cancellation is not lost, whoever it meets on its way."""

from __future__ import annotations

import asyncio

import pytest

from harness.environment.concurrency import ensure_not_cancelled


async def test_a_cancellation_that_meets_an_answer_is_not_lost() -> None:
    """Both come in one turn of the loop: before Python 3.12 `wait_for` returns the answer and says nothing."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask() -> None:
        await asyncio.wait_for(answer, 10)
        ensure_not_cancelled()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    answer.set_result(None)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_who_was_not_cancelled_goes_on() -> None:
    """Nor is the end of a scope's own time a cancellation."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    ensure_not_cancelled()
