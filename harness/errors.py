"""What can go wrong in the harness itself, and whose fault it is.

A violated invariant is never an exception: it is a value. These are the other cases; the message of each is one
sentence for a person: what was tried, what was seen, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class StormproofError(Exception):
    """Base of everything the harness raises on purpose; `exit_code` is what the command ends with."""

    exit_code = 3


class UsageError(StormproofError):
    """The caller asked for something that does not exist or cannot be: fix the words of the call."""

    exit_code = 64


class PlanError(UsageError):
    """A plan, fault or topology holds a value that makes no sense."""


class EnvironmentFailedError(StormproofError):
    """A real part (broker, proxy, process, port, disk) could not be had or died; nothing is known of the system."""


class EvidenceDamagedError(StormproofError):
    """A run directory holds no evidence that can be judged: nobody can tell, so the verdict is UNKNOWN."""

    exit_code = 2


def leaf_of(error: BaseException) -> BaseException:
    """Return what task groups may have wrapped: the first error raised here on purpose, else the first of all.

    Not `except*`: what is raised inside it comes out wrapped again or not, as the Python version pleases.
    """
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, StormproofError)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
