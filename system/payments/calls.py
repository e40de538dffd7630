"""Asking the provider, behind the circuit breaker and within the retry budget.

Promises: no request is made while the breaker is open; each one reports its result to the breaker, cancellation
included; one delivery makes at most `ATTEMPTS_MAX` requests. What says that the provider is in trouble (no connection,
no answer in time, 5xx, 429, an answer that makes no sense) is a failure; any other answer, a decline and a refusal
included, shows that it works. Whatever cannot be had now raises `TryLaterError`, which hands the delivery back; while
the breaker is open, until it lets somebody through again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from system import telemetry
from system.metrics import Metrics
from system.payments.breaker import BreakerOpenError, BreakerState, Change, CircuitBreaker
from system.payments.provider_client import ProviderRefusedError, ProviderUnavailableError
from system.payments.retries import ATTEMPTS_MAX, Backoff, RetryBudget
from system.processing import GiveUpError, TryLaterError

log = logging.getLogger(__name__)

_T = TypeVar("_T")

Ask = Callable[[int], Awaitable[_T]]
"""Makes one request; told which attempt it is, 1 for the first."""


class ProviderCalls:
    """What all deliveries of a process share when they ask the provider."""

    def __init__(
        self,
        breaker: CircuitBreaker,
        *,
        metrics: Metrics,
        budget: RetryBudget | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._breaker = breaker
        self._budget = budget or RetryBudget()
        self._backoff = backoff or Backoff()
        self._metrics = metrics
        self._attempts = metrics.counter("charge_attempts", "Requests made to the provider, for charges and refunds")
        self._retries = metrics.counter("charge_retries", "Requests made again within one delivery")
        self._denied = metrics.counter("retries_denied", "Requests not made again because the budget was spent")
        self._seconds = metrics.histogram("charge_seconds", "How long each request to the provider took")

    async def ask(self, ask: Ask[_T], order_id: str) -> _T:
        """The outcome of a request, made up to `ATTEMPTS_MAX` times."""
        breaker = self._breaker
        attempt = 1
        while True:
            try:
                call = breaker.begin()
            except BreakerOpenError as error:
                self._count_failure("breaker_open")
                raise TryLaterError(f"order {order_id}: {error}", retry_in_s=error.retry_in_s) from None
            if attempt == 1:
                self._budget.first_call()
            self._attempts.add()
            began_s = time.perf_counter()
            try:
                outcome = await ask(attempt)
            except ProviderUnavailableError as error:
                breaker.failed(call)
                self._seconds.observe(time.perf_counter() - began_s)
                failure = error
            except ProviderRefusedError as error:
                breaker.succeeded(call)
                self._count_failure("refused")
                raise GiveUpError(f"order {order_id}: the provider refuses for good: {error}") from None
            except BaseException:
                breaker.abandoned(call)
                raise
            else:
                breaker.succeeded(call)
                self._seconds.observe(time.perf_counter() - began_s)
                return outcome
            self._count_failure(failure.reason)
            log.info("asking for order %s, attempt %d: %s", order_id, attempt, failure)
            self._check_another(attempt, order_id, failure)
            await asyncio.sleep(self._backoff.wait_s(attempt))
            attempt += 1
            self._retries.add()

    def _check_another(self, attempt: int, order_id: str, failure: ProviderUnavailableError) -> None:
        """Raise `TryLaterError` unless the request may be made again within this delivery."""
        if self._breaker.admits == 0:
            retry_in_s = self._breaker.retry_in_s
            raise TryLaterError(f"order {order_id}: {failure}; the breaker is open now", retry_in_s=retry_in_s)
        if attempt >= ATTEMPTS_MAX:
            raise TryLaterError(f"order {order_id}: after {attempt} attempts {failure}")
        if not self._budget.take_retry():
            self._denied.add()
            raise TryLaterError(f"order {order_id}: {failure}, and the retry budget is spent")

    def _count_failure(self, reason: str) -> None:
        self._metrics.counter(
            "payment_failures", "Requests to the provider without an outcome", label="reason", value=reason
        ).add()


def watch_breaker(metrics: Metrics, *, on_room: Callable[[], None]) -> Callable[[Change], None]:
    """What to give a breaker as `on_change`: tells metrics, log and trace; calls `on_room` when it lets calls in."""
    state = metrics.gauge("breaker_state", "The circuit breaker: 0 closed, 1 half-open, 2 open")
    opened = metrics.counter("breaker_opened", "Times the circuit breaker opened")

    def changed(change: Change) -> None:
        state.value = int(change.after)
        words = f"circuit breaker {change.name}: {_WORDS[change.before]} -> {_WORDS[change.after]}, {change.why}"
        log.warning("%s", words)
        span = telemetry.current()
        if isinstance(span, telemetry.HotSpan):
            span.event(
                "circuit breaker",
                {"breaker.name": change.name, "breaker.state": _WORDS[change.after], "breaker.why": change.why},
            )
        if change.after is BreakerState.OPEN:
            opened.add()
        else:
            on_room()

    return changed


_WORDS = {BreakerState.CLOSED: "closed", BreakerState.HALF_OPEN: "half-open", BreakerState.OPEN: "open"}
