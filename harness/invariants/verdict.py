"""Three-valued verdicts, and how they add up.

HOLDS, VIOLATED or UNKNOWN; merged by the worst: VIOLATED, then UNKNOWN, then HOLDS. No evidence is UNKNOWN.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ruling(StrEnum):
    """What can be said of a claim."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    UNKNOWN = "UNKNOWN"

    @property
    def exit_code(self) -> int:
        """0 holds, 1 violated, 2 unknown."""
        return _EXIT_CODES[self]


HOLDS = Ruling.HOLDS
VIOLATED = Ruling.VIOLATED
UNKNOWN = Ruling.UNKNOWN

_EXIT_CODES = {HOLDS: 0, VIOLATED: 1, UNKNOWN: 2}


def worst(rulings: Iterable[Ruling]) -> Ruling:
    """Merge rulings. Of none at all nothing is known: UNKNOWN."""
    seen = set(rulings)
    if VIOLATED in seen:
        return VIOLATED
    if UNKNOWN in seen or not seen:
        return UNKNOWN
    return HOLDS


class Finding(Protocol):
    """The smallest counterexample to a claim: a frozen dataclass that can tell itself in one sentence."""

    @property
    def key(self) -> str:
        """What it is about: an order's id, a trace, a message id."""

    def sentence(self) -> str:
        """Say what was seen, with its numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The ruling on one invariant.

    examined: how many things were looked at; 0 is always UNKNOWN.
    reason: one sentence; empty only when the claim holds.
    findings: in a stable order, every one of them.
    """

    invariant: str
    name: str
    claim: str
    state: Ruling
    examined: int
    reason: str
    findings: tuple[Finding, ...] = ()
