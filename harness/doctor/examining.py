"""One look at one thing of the host: it has an end, and breaks nothing but itself.

Promises: an answer for every name that was asked, within the bound, whatever the thing does: hang, crash, or raise.

Does not: know what is looked at (`programs`, `containers`, `host`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from harness.doctor.ability import Ability, broken, unknown
from harness.errors import StormproofError, UsageError

WITHIN_S = 20.0

T = TypeVar("T")


async def examine(name: str, look: Callable[[], Awaitable[Ability]], *, within_s: float = WITHIN_S) -> Ability:
    """What the look says; never raises, except when it is cancelled."""
    try:
        async with asyncio.timeout(within_s):
            return await look()
    except TimeoutError:
        return unknown(name, f"looking at it took longer than {within_s:g} s", "look at it yourself: something hangs")
    except UsageError as error:
        return broken(name, str(error), "name it rightly")
    except (StormproofError, OSError) as error:
        return broken(name, *_why_and_remedy(str(error)))
    except Exception as error:  # noqa: BLE001 - a doctor whom one part of the host can kill says nothing of the others
        return unknown(name, f"the look at it broke ({type(error).__name__}: {error})", "please report this line")


async def in_thread(call: Callable[[], T]) -> T:
    """What a blocking call returns. Unlike `asyncio.to_thread` nobody waits for it once this is cancelled.

    A look at a file system that hangs does not end, and must not keep the doctor from ending.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[], None]) -> None:
        if not answer.done():
            settle()

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            settle = partial(answer.set_exception, error)
        else:
            settle = partial(answer.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, settle)

    threading.Thread(target=run, daemon=True).start()
    return await answer


def _why_and_remedy(sentence: str) -> tuple[str, str]:
    # Errors of the harness end with what to do, behind a semicolon.
    lines = sentence.splitlines() or [""]
    why, semicolon, remedy = lines[0].rpartition("; ")
    return (why, remedy) if semicolon else (lines[0], "do what it says, then ask again")
