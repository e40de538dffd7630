"""One thread for what would block the event loop.

Not an executor: the interpreter waits for an executor's threads before it exits, and a disk that hangs would hold it;
and two thirds of its 33 us a job are locks and futures that one caller does not need (20 us here).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_Job = Callable[[], Callable[[], None]]


class Worker:
    """A thread that does one thing at a time, in order; a daemon, so that a disk that hangs does not hold the exit."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_R]:
        """Call it in the thread; the future has the outcome. Being cancelled does not undo the call."""
        outcome: asyncio.Future[_R] = self._loop.create_future()

        def job() -> Callable[[], None]:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                return lambda error=error: None if outcome.done() else outcome.set_exception(error)  # type: ignore[misc]
            return lambda: None if outcome.done() else outcome.set_result(result)

        self._jobs.put(job)
        return outcome

    def stop(self) -> None:
        """End the thread after what it does; nobody waits for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            tell = job()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(tell)
