"""One thing that works on this host or does not, and what to do about it.

Promises: nothing is said to work that was not seen to work, or whose makings were not seen; what nobody looked at is
*not known*, which is not *works*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How far one can count on a thing."""

    WORKS = "works"
    LATER = "first run"
    """Not here yet: the first run that needs it brings it, and what that takes is here."""
    UNKNOWN = "not known"
    BROKEN = "does not"


_WORST_FIRST = (State.BROKEN, State.UNKNOWN, State.LATER, State.WORKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """One thing, by the name that people know it by.

    why: what was seen. remedy: one line to paste into a shell where there is one, else what to do; empty when nothing
    has to be done. version: of a program or package, as it said itself. seconds: how long it took, where it was tried.
    """

    name: str
    state: State
    why: str = ""
    remedy: str = ""
    version: str = ""
    seconds: float | None = None

    @property
    def works(self) -> bool:
        """Whether a run that needs it would have it."""
        return self.state in (State.WORKS, State.LATER)

    def document(self) -> dict[str, object]:
        """The JSON object of the contract."""
        return {
            "name": self.name,
            "works": self.works,
            "why": self.why,
            "remedy": self.remedy,
            "state": self.state.value,
            "version": self.version,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
        }


def works(name: str, why: str, *, version: str = "", seconds: float | None = None) -> Ability:
    """It was seen to work."""
    return Ability(name=name, state=State.WORKS, why=why, version=version, seconds=seconds)


def later(name: str, why: str) -> Ability:
    """It is not here, and the first run brings it."""
    return Ability(name=name, state=State.LATER, why=why)


def unknown(name: str, why: str, remedy: str = "") -> Ability:
    """Nobody could look."""
    return Ability(name=name, state=State.UNKNOWN, why=why, remedy=remedy)


def broken(name: str, why: str, remedy: str) -> Ability:
    """It was seen not to work."""
    return Ability(name=name, state=State.BROKEN, why=why, remedy=remedy)


def all_of(name: str, needs: Iterable[Ability]) -> Ability:
    """What works exactly when everything it needs does; the worst of them says why, and each its own remedy."""
    needs = tuple(needs)
    state = min((need.state for need in needs), key=_WORST_FIRST.index, default=State.WORKS)
    # What is broken says why the rest could not be looked at.
    amiss = [need for need in needs if need.state is state and state is not State.WORKS]
    return Ability(
        name=name,
        state=state,
        why="; ".join(dict.fromkeys(f"{need.name}: {need.why}" for need in amiss)),
        remedy=" && ".join(dict.fromkeys(need.remedy for need in amiss if need.remedy)),
    )
