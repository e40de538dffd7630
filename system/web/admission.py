"""What a service takes at once: more is refused quickly, before anything is done for it, instead of queueing.

Promises: at most `in_flight_max` `POST`s are being answered; one more is answered 503. At most `rate_max_per_s` are
begun in a second, with a second's worth in reserve (and at least one); one more is answered 429. Both say when to try
again. Whoever only reads or probes is never refused here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from system.metrics import Metrics
from system.web.messages import Handler, Request, Response, problem

RETRY_AFTER_S = 1
RETRY_AFTER_MAX_S = 3600
_LIMITED = "POST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """in_flight_max: `POST`s being answered at once. rate_max_per_s: `POST`s begun in a second, 0 for any number."""

    in_flight_max: int
    rate_max_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.in_flight_max < 1:
            raise ValueError(f"in_flight_max={self.in_flight_max} would refuse everything: it must be at least 1")
        if not 0 <= self.rate_max_per_s < math.inf:
            raise ValueError(f"rate_max_per_s={self.rate_max_per_s} is no rate: it must be 0 (no limit) or above")


class Admission:
    """A handler in front of another one, with limits."""

    def __init__(
        self, limits: Limits, handler: Handler, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._handler = handler
        self._clock = clock
        self._reserve = max(limits.rate_max_per_s, 1.0)  # or less than one in a second would be none ever
        self._tokens = self._reserve
        self._filled_at_s = clock()
        self._in_flight = metrics.gauge("requests_in_flight", "POSTs being answered")
        text = "Requests refused for load, by reason"
        self._too_many = metrics.counter("requests_refused", text, label="reason", value="in_flight")
        self._too_fast = metrics.counter("requests_refused", text, label="reason", value="rate")

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer one request, or refuse it."""
        if request.method != _LIMITED:
            return self._handler(request)
        if self._in_flight.value >= self._limits.in_flight_max:
            self._too_many.add()
            return problem(503, "too many requests are under way; this one was not taken", retry_after_s=RETRY_AFTER_S)
        if self._limits.rate_max_per_s and not self._take_token():
            self._too_fast.add()
            wait_s = math.ceil(min((1 - self._tokens) / self._limits.rate_max_per_s, RETRY_AFTER_MAX_S))
            return problem(429, "too many requests in this second; this one was not taken", retry_after_s=wait_s)
        self._in_flight.add()
        answer: Response | Awaitable[Response] | None = None
        try:
            answer = self._handler(request)
        finally:
            if answer is None or isinstance(answer, Response):
                self._in_flight.add(-1)
        return answer if isinstance(answer, Response) else self._counted(answer)

    async def _counted(self, answer: Awaitable[Response]) -> Response:
        try:
            return await answer
        finally:
            self._in_flight.add(-1)

    def _take_token(self) -> bool:
        now_s = self._clock()
        refilled = self._tokens + (now_s - self._filled_at_s) * self._limits.rate_max_per_s
        self._tokens = min(self._reserve, refilled)
        self._filled_at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
