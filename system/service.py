"""The frame around each process: logging, event loop, signals, exit codes.

Exit codes: 0 after SIGTERM or SIGINT, 64 for a configuration that makes no sense, 1 for everything else that keeps the
process from working (one sentence when the cause is known). A stop takes at most `STOP_WITHIN_S`; a second signal ends
the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Protocol, TypeVar

import uvloop

from system import logs
from system.errors import StartError
from system.settings import TelemetrySettings, log_settings
from system.variables import ConfigurationError

log = logging.getLogger(__name__)

STOP_WITHIN_S = 14.0
"""One second below the 15 s that whoever stops us allows."""

SWITCH_EVERY_S = 0.0005
"""How long a thread that commits waits for the loop to let go of the interpreter: Python's own 5 ms, several times per
commit, were most of the time that a commit took under load."""

YOUNG_OBJECTS_MAX = 50_000
"""Before they are looked at for cycles. Python's own 700 are what twenty orders make; nearly all of them die young, and
the looking took a tenth of the CPU of orders."""

EXIT_BROKEN = 1
EXIT_CONFIGURATION = 64


class _HasTelemetry(Protocol):
    @property
    def telemetry(self) -> TelemetrySettings:
        """What the process calls itself."""


_Settings = TypeVar("_Settings", bound=_HasTelemetry)


class StoppedError(Exception):
    """Somebody asked the process to stop before it had started."""


class Stopping:
    """Whether somebody asked this process to stop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Return when the process shall stop."""
        await self._event.wait()

    async def unless_stopped(self, work: Coroutine[object, object, None]) -> None:
        """Do work that belongs to starting; raise `StoppedError` if the process shall stop before it is done."""
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(work)
            stopped = tasks.create_task(self._event.wait())
            done, _ = await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            starting.cancel()
        if starting not in done:
            raise StoppedError

    def listen_to_signals(self) -> None:
        """Stop on SIGTERM and SIGINT; end at once on the second, or when stopping takes too long."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._event.is_set():
            log.warning("second signal (%s): ending at once", number.name)
            _end_at_once(128 + number)
        log.info("%s: stopping", number.name)
        self._event.set()
        asyncio.get_running_loop().call_later(STOP_WITHIN_S, self._on_overdue)

    def _on_overdue(self) -> None:
        log.error("stopping took longer than %g s: ending at once", STOP_WITHIN_S)
        _end_at_once(EXIT_BROKEN)


def started() -> None:
    """Say that all is made: from now on the garbage collector does not look at it again and again.

    A full collection pauses a process by 50 ms for what its imports made. That is why there is none before either: it
    would find nothing worth it.
    """
    sys.setswitchinterval(SWITCH_EVERY_S)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, *gc.get_threshold()[1:])


def run(
    read_settings: Callable[[Mapping[str, str]], _Settings],
    serve: Callable[[_Settings, Stopping], Awaitable[None]],
) -> int:
    """Read the settings, serve until stopped, and return the exit code."""
    try:
        settings = read_settings(os.environ)
        logs.configure(log_settings(os.environ), service=settings.telemetry.service_name)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, error)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, serve))
    except StartError as error:
        return _fail(EXIT_BROKEN, error)
    except ExceptionGroup as group:
        known = _first_start_error(group)
        if known is None:
            raise
        return _fail(EXIT_BROKEN, known)
    return 0


async def _serve(settings: _Settings, serve: Callable[[_Settings, Stopping], Awaitable[None]]) -> None:
    stopping = Stopping()
    stopping.listen_to_signals()
    try:
        await serve(settings, stopping)
    except* StoppedError:
        log.info("stopped before it was ready")
    log.info("stopped")


def _first_start_error(error: BaseException) -> StartError | None:
    if isinstance(error, StartError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _first_start_error(each))), None)
    return None


def _fail(code: int, error: Exception) -> int:
    sys.stderr.write(f"{error}\n")
    return code


def _end_at_once(code: int) -> None:
    sys.stderr.flush()
    os._exit(code)
