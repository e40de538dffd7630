"""Ended spans on their way to a collector: OTLP over HTTP, in batches, in the background.

Promises: bounded memory (the oldest spans go first, and are counted); a batch that the collector did not take is sent
again, unchanged, with growing waits; at the end what is left is sent within `FLUSH_WITHIN_S`. Does not promise
delivery: a collector that stays away costs spans, which `spans_dropped_total` and the gaps in `telemetry.seq` show.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque

from system.metrics import Metrics
from system.settings import http_address
from system.telemetry.encoding import encode_request
from system.web import HttpClient, HttpClientError

log = logging.getLogger(__name__)

QUEUE_SPANS_MAX = 65_536
BATCH_SPANS_MAX = 1_000
SHIP_EVERY_S = 0.2
EXPORT_WITHIN_S = 5.0
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
FLUSH_WITHIN_S = 3.0

_TAKEN_BELOW = 300
_WORTH_ANOTHER_TRY = frozenset({408, 429, 502, 503, 504})  # as the OTLP specification lists, and 408


class SpanShipper:
    """A queue of encoded spans and the one loop that empties it."""

    def __init__(self, endpoint: str, *, resource: bytes, scope_name: str, metrics: Metrics) -> None:
        self._client = HttpClient(http_address(endpoint), connections_max=1)
        self._resource = resource
        self._scope_name = scope_name
        self._queue: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._shipped = metrics.counter("spans_shipped", "Spans the collector took")
        self._dropped = metrics.counter("spans_dropped", "Spans given up before a collector took them")

    def offer(self, span: bytes) -> None:
        """Queue one encoded span; the oldest goes when the queue is full."""
        queue = self._queue
        if not queue:
            self._wake.set()
        elif len(queue) >= QUEUE_SPANS_MAX:
            queue.popleft()
            self._dropped.add()
        queue.append(span)

    def start(self) -> None:
        """Begin to ship; `stop` waits for what was begun."""
        self._loop = asyncio.get_running_loop().create_task(self._run(), name="span shipping")

    async def stop(self) -> None:
        """Ship what is left, for at most `FLUSH_WITHIN_S`."""
        self._stopping.set()
        self._wake.set()
        if self._loop is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._loop, FLUSH_WITHIN_S)
        if self._queue:
            log.warning("%d spans were not taken by the collector and are given up", len(self._queue))
            self._dropped.add(len(self._queue))
        self._client.close()

    async def _run(self) -> None:
        while not (self._stopping.is_set() and not self._queue):
            await self._wake.wait()
            await self._pause(SHIP_EVERY_S)  # so that a batch is a batch
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH_SPANS_MAX, len(self._queue)))]
                await self._ship(batch)

    async def _ship(self, batch: list[bytes]) -> None:
        body = encode_request(self._resource, self._scope_name, batch)
        wait_s = RETRY_FIRST_S
        try:
            while not await self._is_settled(body, len(batch)):
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret
                wait_s = min(wait_s * 2, RETRY_MAX_S)
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(batch))  # counted by `stop`
            raise

    async def _is_settled(self, body: bytes, spans: int) -> bool:
        """Send one request; True when there is no point in sending it again."""
        try:
            answer = await self._client.post(
                "/v1/traces", body, headers={"content-type": "application/x-protobuf"}, within_s=EXPORT_WITHIN_S
            )
        except HttpClientError as error:
            log.debug("the collector did not answer: %s", error)
            return False
        if answer.status < _TAKEN_BELOW:
            self._shipped.add(spans)
            return True
        if answer.status in _WORTH_ANOTHER_TRY:
            return False
        log.warning("the collector refused %d spans with status %d", spans, answer.status)
        self._dropped.add(spans)
        return True

    async def _pause(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
