"""When a call that failed is made again: how often, after which wait, and out of which budget.

Three things could multiply here: the attempts of one delivery, the redeliveries of one message, and the messages. Each
delivery makes at most `attempts_max` attempts, redeliveries come further and further apart (`system.processing`), and
all repeated attempts of the process come out of one `RetryBudget`. So however many deliveries fail, what reaches the
provider is at most their number, and a fifth of it, and `CAP` calls; with a plain "three attempts each" it would be
three times their number, which is what keeps a provider down that is just coming back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

ATTEMPTS_MAX = 3
BACKOFF_FIRST_S = 0.1
BACKOFF_FACTOR = 3.0
BACKOFF_MAX_S = 5.0

DEPOSIT = 0.2
"""What each first call adds to the budget: in the long run one call in five may be a repeated one."""
CAP = 50.0
"""What can be saved up, and what there is at the start: a short trouble is ridden out without a single hand-back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between attempts: exponential, with full jitter.

    first_s, factor: the mean wait after attempt n is first_s * factor ** (n - 1); max_s: the longest mean. A wait is
    uniform from 0 to twice its mean, so that a crowd that failed together does not come back together.
    """

    first_s: float = BACKOFF_FIRST_S
    factor: float = BACKOFF_FACTOR
    max_s: float = BACKOFF_MAX_S

    def __post_init__(self) -> None:
        if self.first_s < 0 or self.factor < 1 or self.max_s < self.first_s:
            raise ValueError(f"{self}: the first wait is at least 0, the factor at least 1, the maximum no less")

    def wait_s(self, attempt: int, chance: Callable[[], float] = random.random) -> float:
        """How long to wait after this attempt, 1 for the first. chance: uniform from 0 to 1."""
        # The exponent is bounded because a float is: nobody asks for the thousandth attempt, but nothing forbids it.
        mean_s = min(self.max_s, self.first_s * self.factor ** min(attempt - 1, 64))
        return 2.0 * mean_s * chance()


class RetryBudget:
    """How many calls may be repeated: a bucket that first calls fill and repeated ones empty."""

    def __init__(self, *, deposit: float = DEPOSIT, cap: float = CAP) -> None:
        if not 0 <= deposit <= 1 or cap < 0:
            raise ValueError(f"deposit={deposit} is outside 0..1, or cap={cap} is below 0")
        self._deposit = deposit
        self._cap = cap
        self.left = cap

    def first_call(self) -> None:
        """A call is made for the first time."""
        if self.left < self._cap:
            self.left = min(self._cap, self.left + self._deposit)

    def take_retry(self) -> bool:
        """True if a call may be repeated now; that much is then spent."""
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True
