"""A pull loop over a durable consumer: deliveries to a handler, with everything bounded.

Promises: at most `in_hand_max` deliveries are with the handler (a dead pull request that comes alive again may add
its batch), and less if `admission` says so; one pull request is open whenever there is room; a request that ended,
went silent or was lost with its connection is replaced (nats.py #504: its own `fetch` stays silent after a server
restart); what arrived together is handed over together, and makes room one by one, as it is answered; a handling
longer than a third of AckWait is announced to the broker as in progress; a consumer deleted under us is made again.
After `stop` nothing is pulled, what arrives is handed back, and `run` returns when what is in hand is finished, or
given up after `finish_within_s`: the broker delivers that again.

Does not: answer deliveries (handlers do) or survive a handler that raises (`system.processing` never does).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from system.jetstream.connection import Connection
from system.jetstream.delivery import Delivery
from system.jetstream.errors import NotConnectedError, RequestError
from system.jetstream.streams import ConsumerSpec
from system.jetstream.wire import Message, publish_frame
from system.metrics import Metrics

log = logging.getLogger(__name__)

IN_HAND_MAX = 256
PULL_EXPIRES_S = 1.0
"""Short, because the broker goes on delivering to a request whose client is gone until the request expires."""
HEARTBEAT_S = 0.4
"""Below half of the expiry, as the server demands."""
HEARTBEATS_MISSED_MAX = 2
PAUSE_S = 0.1
"""Wait after the broker refused a pull request."""
FINISH_WITHIN_S = 4.0
"""How long a stop waits for what is in hand, unless told otherwise."""
DRAIN_WITHIN_S = 1.0
GIVE_BACK_DELAY_S = 0.05
REFILL_SHARE = 4
"""Pull once a quarter of the room is free, not for every single place."""
GATHER_S = 0.005
"""Between two batches, under load: a batch costs a task, two spans and a commit, whether it holds one or fifty."""
ADMISSION_EVERY_S = 0.25
"""How soon an admission that said no is asked again, if nobody wakes the consumer before."""

_NS = 1_000_000_000


class Handler(Protocol):
    """What a consumer hands deliveries to."""

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Do the work of what arrived together, and answer every delivery; must not raise."""


@dataclass(slots=True, kw_only=True)
class _PullRequest:
    """The one request that is open: how much is still to come, and when silence means that it is dead."""

    reply: str
    left: int
    silent_at_s: float


class Consumer:
    """Runs one handler over one durable consumer.

    restore: makes the stream and the consumer again should they be gone; raises `RequestError` if it cannot yet.
    admission: how many deliveries somebody else allows to be in hand now; 0 pulls nothing, and it is asked again after
    `ADMISSION_EVERY_S`, or at `wake`.
    """

    def __init__(
        self,
        connection: Connection,
        spec: ConsumerSpec,
        handler: Handler,
        *,
        restore: Callable[[], Awaitable[None]],
        metrics: Metrics,
        in_hand_max: int = IN_HAND_MAX,
        finish_within_s: float = FINISH_WITHIN_S,
        admission: Callable[[], int] | None = None,
    ) -> None:
        self._connection = connection
        self._spec = spec
        self._handler = handler
        self._restore = restore
        self._in_hand_max = in_hand_max
        self._finish_within_s = finish_within_s
        self._admission = admission
        self._inbox = connection.new_inbox()
        self._request: _PullRequest | None = None
        self._requests = 0
        self._gathered: list[Delivery] = []
        self._handed_over_at_s = 0.0
        self._in_hand: set[Delivery] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._handlings = asyncio.TaskGroup()
        self._wake = asyncio.Event()
        self._not_before_s = 0.0
        self._is_missing = False
        self._is_unanswered = False
        self._stopped = asyncio.Event()
        self._is_running = False
        name = spec.name
        self._deliveries = metrics.counter("deliveries", "Deliveries taken", label="consumer", value=name)
        self._redeliveries = metrics.counter(
            "redeliveries", "Deliveries that were not the first of their message", label="consumer", value=name
        )
        self._silences = metrics.counter(
            "pulls_silent", "Pull requests given up for missed heartbeats", label="consumer", value=name
        )
        self._in_hand_now = metrics.gauge("in_hand", "Deliveries being handled", label="consumer", value=name)
        self._seconds = metrics.histogram(
            "handling_seconds", "Time from a delivery to its answer", label="consumer", value=name
        )

    async def run(self) -> None:
        """Pull and handle until `stop`, then finish what is in hand."""
        inbox = f"{self._inbox}.*"
        await self._connection.subscribe(inbox, self._on_messages)
        self._connection.on_connected(self._pull_anew)
        try:
            async with self._handlings:
                signals = self._handlings.create_task(self._signal_progress(), name=f"{self._spec.name} progress")
                self._is_running = True
                await self._pull_until_stopped()
                await self._connection.drain(inbox, within_s=DRAIN_WITHIN_S)
                self._hand_over()
                await self._finish()
                signals.cancel()
        finally:
            self._is_running = False

    @property
    def is_served(self) -> bool:
        """True while it runs, and the broker answers what it asks; who asks nothing now is not unanswered."""
        return self._is_running and not self._is_missing and not self._is_unanswered

    def stop(self) -> None:
        """Pull no more."""
        self._stopped.set()
        self._wake.set()

    def wake(self) -> None:
        """Look again whether something may be pulled: admission may say something else now."""
        self._wake.set()

    def pull(self, batch: int) -> None:
        """Ask the broker for up to `batch` messages."""
        self._requests += 1
        reply = f"{self._inbox}.{self._requests}"
        self._request = _PullRequest(reply=reply, left=batch, silent_at_s=0.0)
        self._heard()
        request = {
            "batch": batch,
            "expires": round(PULL_EXPIRES_S * _NS),
            "idle_heartbeat": round(HEARTBEAT_S * _NS),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._spec.stream}.{self._spec.name}"
        try:
            self._connection.post(publish_frame(subject, msgspec.json.encode(request), reply=reply))
        except NotConnectedError:
            self._end_request(pause=True)

    async def _pull_until_stopped(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            now_s = time.monotonic()
            if self._request is not None and now_s >= self._request.silent_at_s:
                log.info("a pull request of %s went silent; asking anew", self._spec.name)
                self._silences.add()
                self._request = None
                self._is_unanswered = True
            again_s = PULL_EXPIRES_S
            if self._request is None and self._connection.is_connected and now_s >= self._not_before_s:
                if self._is_missing:
                    await self._make_again()
                    continue
                if self._has_room:
                    admitted = self._admitted
                    if admitted > 0:
                        self.pull(admitted)
                    else:
                        again_s = ADMISSION_EVERY_S
            await self._wait_for_news(again_s)

    @property
    def _has_room(self) -> bool:
        return (self._in_hand_max - self._held) * REFILL_SHARE >= self._in_hand_max

    @property
    def _held(self) -> int:
        return len(self._in_hand) + len(self._gathered)

    @property
    def _admitted(self) -> int:
        """How many more may be in hand."""
        allowed = self._in_hand_max if self._admission is None else min(self._in_hand_max, self._admission())
        return allowed - self._held

    async def _wait_for_news(self, again_s: float) -> None:
        """Return when something happened, or when it is time to look again."""
        now_s = time.monotonic()
        if self._request is not None:
            until_s = self._request.silent_at_s
        elif self._not_before_s > now_s:
            until_s = self._not_before_s
        else:
            until_s = now_s + again_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until_s - now_s)):
                await self._wake.wait()

    async def _make_again(self) -> None:
        log.warning("consumer %s is not there; making it again", self._spec.name)
        making = asyncio.ensure_future(self._restore())
        making.add_done_callback(_note_unheard)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            # Not awaited itself: a stop does not wait for a broker that does not answer, nor for nats-py, which may
            # keep a cancellation to itself.
            await asyncio.wait((making, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            making.cancel()
        if not making.done():
            return
        try:
            making.result()
        except RequestError as error:
            log.warning("consumer %s could not be made again yet: %s", self._spec.name, error)
            self._not_before_s = time.monotonic() + PAUSE_S
        else:
            self._is_missing = False

    def _on_messages(self, messages: list[Message]) -> None:
        """Whatever arrived together: deliveries, and what the broker says of the open request."""
        deliveries: list[Delivery] = []
        for message in messages:
            if message.reply.startswith("$JS.ACK."):
                try:
                    deliveries.append(Delivery(self._connection, message, on_answered=self._on_answered))
                except ValueError as error:
                    log.warning("something that the broker did not send came for %s: %s", self._spec.name, error)
            elif self._request is not None and message.subject == self._request.reply:
                self._on_status(message.headers.get("Status", ""), message.headers.get("Description", ""))
        if deliveries:
            self._is_unanswered = False
            self._heard()
            self._count(deliveries)
            self._gather(deliveries)

    def _count(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries.add(len(deliveries))
        for delivery in deliveries:
            if delivery.times_delivered > 1:
                self._redeliveries.add()
        # A delivery carries the subject of its message, not that of the inbox, so it cannot be told which request it
        # answers: one that came late for a dead request is counted against the open one, and a place is pulled twice.
        if self._request is not None:
            self._request.left -= len(deliveries)
            if self._request.left <= 0:
                self._end_request(pause=False)

    def _on_status(self, status: str, description: str) -> None:
        """What the broker says of the open request instead of a message."""
        self._is_unanswered = False
        match status:
            case "100":  # idle heartbeat
                self._heard()
            case "404" | "408":  # no messages; expired
                self._end_request(pause=False)
            case "503":  # no responders: the consumer is not there, or not yet
                self._is_missing = True
                self._end_request(pause=True)
            case "409":
                # "Consumer Deleted", "Leadership Change", "Server Shutdown", ...: the request is over.
                self._is_missing = "deleted" in description.lower()
                self._end_request(pause="batch completed" not in description.lower())
            case _:
                log.warning("a pull request of %s ended with %r %r", self._spec.name, status, description)
                self._end_request(pause=True)

    def _heard(self) -> None:
        if self._request is not None:
            self._request.silent_at_s = time.monotonic() + HEARTBEAT_S * HEARTBEATS_MISSED_MAX

    def _end_request(self, *, pause: bool) -> None:
        self._request = None
        if pause:
            self._not_before_s = time.monotonic() + PAUSE_S
        self._wake.set()

    def _pull_anew(self) -> None:
        """A new connection: the server forgot the request that was open on the old one."""
        self._request = None
        self._wake.set()

    def _gather(self, deliveries: list[Delivery]) -> None:
        """Hand over the first at once, and what comes soon after a batch together with what comes with it."""
        now_s = time.monotonic()
        if self._gathered:
            self._gathered += deliveries
        elif now_s - self._handed_over_at_s >= GATHER_S:
            self._handed_over_at_s = now_s
            self._take(deliveries)
        else:
            self._gathered = deliveries
            delay_s = self._handed_over_at_s + GATHER_S - now_s
            asyncio.get_running_loop().call_later(delay_s, self._hand_over)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._handed_over_at_s = time.monotonic()
            self._take(gathered)

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        if self._stopped.is_set():
            for delivery in deliveries:
                delivery.give_back(GIVE_BACK_DELAY_S)
            return
        self._in_hand.update(deliveries)
        self._in_hand_now.value = len(self._in_hand)
        batch = self._handlings.create_task(self._handle(deliveries))
        self._batches.add(batch)
        batch.add_done_callback(self._batches.discard)

    async def _handle(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self._handler.handle(deliveries)
        finally:
            for delivery in deliveries:
                if not delivery.is_answered:
                    self._make_room(delivery)

    def _on_answered(self, delivery: Delivery) -> None:
        self._seconds.observe(time.monotonic() - delivery.arrived_at_s)
        self._make_room(delivery)

    def _make_room(self, delivery: Delivery) -> None:
        self._in_hand.discard(delivery)
        self._in_hand_now.value = len(self._in_hand)
        if self._request is None and self._has_room:
            self._wake.set()

    async def _signal_progress(self) -> None:
        third_s = self._spec.ack_wait_s / 3
        while True:
            await asyncio.sleep(third_s / 2)
            now_s = time.monotonic()
            for delivery in self._in_hand:
                if now_s - delivery.signalled_at_s >= third_s:
                    delivery.signal_progress()

    async def _finish(self) -> None:
        """Wait for what is in hand, and give up what takes too long."""
        if not self._batches:
            return
        _, unfinished = await asyncio.wait(self._batches, timeout=self._finish_within_s)
        if unfinished:
            log.warning("%d deliveries of %s are left to be delivered again", len(self._in_hand), self._spec.name)
        for batch in unfinished:
            batch.cancel()


def _note_unheard(making: asyncio.Future[None]) -> None:
    """Whoever waited for it has gone: its error is nobody's any more, and not to be complained of."""
    if not making.cancelled():
        making.exception()
