"""What is killed, and when: the commands of the harness and pytest, and moments of their lives.

Promises: a word that means nothing is refused with the words there are.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from harness.errors import UsageError

_MOMENT = re.compile(r"(?P<seconds>\d+(?:\.\d+)?)s|(?P<kind>line|processes):(?P<count>\d+)")

WAITING_TEST = """
import asyncio, sys

async def test_that_waits(live_run):
    print("the test waits", file=sys.stderr, flush=True)
    await asyncio.Event().wait()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill: after so many seconds, or as soon as so many lines were said, or so many processes are owned."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Moment:
        """Read `1.5s`, `line:3` or `processes:4`. Raises UsageError."""
        match = _MOMENT.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is no moment: write 1.5s, line:3 or processes:4")
        if match["seconds"] is not None:
            return cls(kind="seconds", value=float(match["seconds"]))
        return cls(kind=match["kind"], value=float(match["count"]))

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.value:.2f}s" if self.kind == "seconds" else f"{self.kind}:{self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A command that will be killed. ready: what it says once it only waits, None for one that ends by itself."""

    words: tuple[str, ...]
    ready: str | None = None


def victim_of(what: str, *options: str) -> Victim:
    """The command that is meant by a word: `run`, `up`, `doctor` or `pytest`, with these options."""
    stormproof = (sys.executable, "-m", "harness")
    match what:
        case "run":
            return Victim(words=(*stormproof, "run", "payments-partition", *options))
        case "up":
            return Victim(words=(*stormproof, "up", *options), ready="environment ready")
        case "doctor":
            return Victim(words=(*stormproof, "doctor", "--thorough", *options))
        case "pytest":
            pytest = (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-c", "pyproject.toml")
            return Victim(words=(*pytest, *options), ready="the test waits")
        case _:
            raise UsageError(f"{what!r} is nothing that can be killed here: choose run, up, doctor or pytest")
