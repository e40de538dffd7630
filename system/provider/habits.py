"""The provider's unpleasant habits: what they are, how they are changed, and the chance behind them.

Promises: habits that make no sense are refused and change nothing; without habits nothing is drawn and nothing is
slept; with a `seed` the same requests in the same order meet the same luck. Habits decide what a request meets, never
what is true: the ledger is right whatever the provider's manners.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Annotated

import msgspec

DECLINED_ENDING = 13
HELD_MAX = 10_000
"""Requests left without an answer at once; beyond that the oldest gets one after all."""
FINISH_WITHIN_S = 3.0
"""How long a stop waits for thoughts that are under way."""

_MODULUS = 100

_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0.0, le=600_000.0)]
_Ending = Annotated[int, msgspec.Meta(ge=0, le=99)]
_Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class HabitsError(Exception):
    """These are no habits; the message says what is wrong with them."""


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the card network thinks before it decides.

    mean_ms, jitter_ms: uniform between mean - jitter and mean + jitter. slow_share: of the requests that take slow_ms
    instead.
    """

    mean_ms: _Milliseconds = 0.0
    jitter_ms: _Milliseconds = 0.0
    slow_ms: _Milliseconds = 0.0
    slow_share: _Share = 0.0

    def __post_init__(self) -> None:
        if self.jitter_ms > self.mean_ms:
            raise ValueError(f"jitter_ms={self.jitter_ms:g} is above mean_ms={self.mean_ms:g}")


class Habits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the provider treats requests for charges and refunds; rates are shares of them, 0 to 1.

    latency: before anything is decided. error_rate: answered 500, nothing moves. too_many_rate: answered 429, nothing
    moves. decline_ending: amounts whose hundredths end so are declined, None declines none. charge_then_timeout_rate:
    the money moves (either way) and the answer never comes. silent: nothing moves and no answer ever comes.
    duplicate_webhook_rate: webhooks that are told twice. seed: where chance starts from, None for anywhere.
    """

    latency: Latency = Latency()
    error_rate: _Share = 0.0
    too_many_rate: _Share = 0.0
    decline_ending: _Ending | None = DECLINED_ENDING
    charge_then_timeout_rate: _Share = 0.0
    duplicate_webhook_rate: _Share = 0.0
    silent: bool = False
    seed: _Seed | None = None

    def changed(self, patch: bytes) -> Habits:
        """These habits, but for the members of a JSON object; `HabitsError` if that makes no sense."""
        try:
            members = msgspec.json.decode(patch)
            if not isinstance(members, dict):
                raise HabitsError("habits are a JSON object")
            now = msgspec.to_builtins(self)
            if isinstance(members.get("latency"), dict):
                members["latency"] = now["latency"] | members["latency"]
            return msgspec.convert(now | members, Habits)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise HabitsError(f"these are no habits: {error}") from None


class Behaviour:
    """The habits in force, and what they come to for one request."""

    def __init__(self, initial: Habits) -> None:
        self._initial = initial
        self._held: deque[asyncio.Future[bool]] = deque()
        self._thinking: set[asyncio.Future[bool]] = set()
        self._is_released = False
        self.reset()

    def reset(self) -> None:
        """Go back to the habits of the start."""
        self.adopt(self._initial)

    def adopt(self, habits: Habits) -> None:
        """Be like this from now on; chance starts anew."""
        self.habits = habits
        self._chance = random.Random(habits.seed)  # noqa: S311 - repeatable chance, no secret
        self.is_plain = not (
            habits.silent
            or habits.error_rate
            or habits.too_many_rate
            or habits.charge_then_timeout_rate
            or habits.latency.mean_ms
            or habits.latency.slow_share
        )
        """True while every request is simply answered: one look instead of six on the way of each charge."""

    def declines(self, amount_minor: int) -> bool:
        """Whether the card network refuses this amount."""
        return amount_minor % _MODULUS == self.habits.decline_ending

    def happens(self, share: float) -> bool:
        """Whether something happens to this one that happens to a share of all."""
        return share > 0.0 and self._chance.random() < share

    def pause_ms(self) -> float:
        """How long the card network thinks this time."""
        latency = self.habits.latency
        if self.happens(latency.slow_share):
            return latency.slow_ms
        return latency.mean_ms + latency.jitter_ms * self._chance.uniform(-1.0, 1.0)

    async def think(self) -> bool:
        """Take as long as the card network takes; False if the provider stopped before that was over."""
        pause_ms = self.pause_ms()
        if pause_ms <= 0.0:
            return True
        loop = asyncio.get_running_loop()
        thought: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(pause_ms / 1000, _end, thought, True)  # noqa: FBT003 - as call_later has it
        self._thinking.add(thought)
        try:
            return await thought
        finally:
            timer.cancel()
            self._thinking.discard(thought)

    async def never_answer(self) -> None:
        """Return only when there is no point in silence any more: at `release`, or when too many are held."""
        if self._is_released:
            return
        if len(self._held) >= HELD_MAX:
            _end(self._held.popleft(), True)  # noqa: FBT003 - whatever ends it
        held: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._held.append(held)
        await held

    def release(self) -> None:
        """The provider stops: hold nobody any longer, and think for `FINISH_WITHIN_S` more at most."""
        self._is_released = True
        while self._held:
            _end(self._held.popleft(), True)  # noqa: FBT003 - as above
        for thought in self._thinking:
            asyncio.get_running_loop().call_later(FINISH_WITHIN_S, _end, thought, False)  # noqa: FBT003 - as above


def _end(waiting: asyncio.Future[bool], result: bool) -> None:  # noqa: FBT001 - as call_later has it
    if not waiting.done():
        waiting.set_result(result)
