"""The loop that owns what outlives a test."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from harness.fixtures.owner_loop import OwnerLoop


@pytest.fixture
def owner() -> Iterator[OwnerLoop]:
    """One that ends with the test."""
    with OwnerLoop() as running:
        yield running


def test_what_is_asked_is_done_elsewhere_and_answered_here(owner: OwnerLoop) -> None:
    """On one thread, and it is not this one."""

    async def who() -> int:
        return threading.get_ident()

    assert owner.run(who()) == owner.run(who()) != threading.get_ident()


async def test_a_test_with_a_loop_asks_in_the_same_way(owner: OwnerLoop) -> None:
    """It blocks, as said; beside the loop it does not."""

    async def wait(event: asyncio.Event) -> str:
        await event.wait()
        return "done"

    event = asyncio.Event()
    event.set()

    assert owner.run(wait(event)) == "done"
    assert await asyncio.to_thread(owner.run, wait(event)) == "done"


def test_an_error_is_raised_where_it_was_asked_for(owner: OwnerLoop) -> None:
    """As itself."""

    async def fail() -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        owner.run(fail())


def test_a_context_is_entered_and_left_by_one_task(owner: OwnerLoop) -> None:
    """Time-outs and task groups across the scope need that."""
    tasks: list[asyncio.Task[object] | None] = []

    @asynccontextmanager
    async def context() -> AsyncIterator[str]:
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(60):
            yield "given"
        tasks.append(asyncio.current_task())

    with owner.kept(context()) as given:
        assert given == "given"
        assert len(tasks) == 1

    assert tasks[0] is tasks[1]


def test_a_context_that_cannot_be_entered_says_why(owner: OwnerLoop) -> None:
    """The error comes out of the scope's beginning."""

    @asynccontextmanager
    async def context(*, is_open: bool) -> AsyncIterator[None]:
        if not is_open:
            raise ValueError("not today")
        yield

    with pytest.raises(ValueError, match="not today"), owner.kept(context(is_open=False)):
        pytest.fail("it was entered")


def test_an_error_at_the_end_of_a_context_is_not_lost(owner: OwnerLoop) -> None:
    """A cleanup that failed must not pass in silence."""

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        yield
        raise ValueError("left something")

    with pytest.raises(ValueError, match="left something"), owner.kept(context()):
        pass


def test_whoever_is_interrupted_goes_on_when_the_call_has_cleaned_up(owner: OwnerLoop) -> None:
    """Ctrl-C while a part starts: it is ended before anything else happens."""
    cleaned = threading.Event()
    began = threading.Event()

    async def start() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    def interrupt() -> None:
        began.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        owner.run(start())
    thread.join()

    assert cleaned.is_set()


def test_what_nobody_waits_for_ends_with_the_loop() -> None:
    """A scope whose end was interrupted is ended by the owner's."""
    ended = threading.Event()

    async def forgotten() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(forgotten())

    with OwnerLoop() as owner:
        task = owner.run(begin())

    assert ended.is_set()
    assert task.cancelled()
