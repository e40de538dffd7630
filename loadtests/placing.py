"""The load test inside Locust: users take slots of one open loop, place orders, and record each with its outcome.

Promises: exactly one record for each order that was begun, also when its user is killed; latency from the intended
start, in our figures as in Locust's own; at the stop no new slots, and what is in flight is drained, with a bound.

Does not: know where the system comes from (`locustfile` does), or judge anything.

What it costs is in `benchmark`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

import gevent
from locust import User, task

from harness.records import Operation, Outcome
from loadtests.connection import BrokenAnswerError, Connection, NotSentError, resolved
from loadtests.open_loop import OpenLoop
from loadtests.orders import KIND, PATH, Order, order, outcome_of
from loadtests.recording import FLUSH_EVERY_S
from loadtests.summary import FILE_NAME, Asked, Summary, summarize, write_unfinished

if TYPE_CHECKING:
    from pathlib import Path

    from locust.env import Environment

    from loadtests.open_loop import Slot
    from loadtests.recording import Recording

ANSWER_WITHIN_S = 10.0
DRAIN_MARGIN_S = 2.0
DETAIL_MAX = 500
LEAD_NS = 20_000_000
"""So long after the first user the first slot is due, so that the others are in place too."""

_LOOK_EVERY_S = 0.005
_NS_PER_S, _NS_PER_MS = 1_000_000_000, 1_000_000

logger = logging.getLogger("stormproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What one test was asked to do. duration_s: None when a person will stop it.

    answer_within_s: a client that waits longer gives up, outcome unknown. drain_within_s: after the stop.
    """

    seed: int
    rate_per_s: float
    duration_s: float | None
    answer_within_s: float
    drain_within_s: float


class LoadTest:
    """One test after the other in one Locust process, recorded in one history."""

    def __init__(self, *, environment: Environment, recording: Recording, directory: Path | None) -> None:
        """directory: where the summary is written, None for nowhere."""
        self._environment = environment
        self._recording = recording
        self._summary_path = None if directory is None else directory / FILE_NAME
        self._clock = Clock()
        self._wishes: Wishes | None = None
        self._loop: OpenLoop | None = None
        self._host = ""
        self._address = ("", 0)
        self._first_number = 0
        self._asked: Asked | None = None
        self._cpu_began_s = 0.0
        self._drain_s = 0.0
        self._flushing = gevent.spawn(self._flush_for_ever)

    @property
    def is_running(self) -> bool:
        """Whether a test was begun and not finished."""
        return self._wishes is not None

    def begin(self, wishes: Wishes) -> None:
        """Make ready for users; the first one to run starts the loop. Raises ValueError or OSError for a bad host."""
        url = self._environment.host or ""
        self._host, self._address = urlsplit(url).netloc, resolved(url)
        self._wishes, self._loop = wishes, None
        self._cpu_began_s = time.process_time()
        if self._summary_path is not None:
            # Should this process be killed, nobody can say how many orders it had begun.
            write_unfinished(self._summary_path)

    def use(self) -> None:
        """Be one user: place orders until no slot is left."""
        if (wishes := self._wishes) is None:
            return
        loop = self._loop = self._loop or OpenLoop(
            rate_per_s=wishes.rate_per_s,
            start_ns=self._clock.now_ns() + LEAD_NS,
            duration_s=wishes.duration_s,
        )
        connection = Connection(self._address)
        try:
            while (slot := loop.take(self._clock.now_ns())) is not None:
                asked = order(wishes.seed, self._first_number + slot.number)
                self._wait_until_due(loop, slot)
                began_ns = self._clock.now_ns()
                if loop.begin(slot, began_ns):
                    try:
                        self._place(connection, asked, began_ns, slot.due_ns, wishes)
                    finally:
                        loop.end()
        finally:
            connection.close()

    def drain(self) -> None:
        """End the loop and wait until nothing is in flight, or until the bound."""
        if (wishes := self._wishes) is None or (loop := self._loop) is None:
            return
        loop.close(self._clock.now_ns())
        began_s = time.monotonic()
        while not loop.is_over(self._clock.now_ns()) and time.monotonic() - began_s < wishes.drain_within_s:
            gevent.sleep(_LOOK_EVERY_S)
        self._drain_s = time.monotonic() - began_s
        if loop.in_flight:
            logger.warning("%d orders were still unanswered %.1f s after the stop", loop.in_flight, self._drain_s)

    def finish(self, users: int) -> Summary | None:
        """Write what is left and the summary of everything so far. The users are gone by now."""
        wishes, loop, self._wishes, self._loop = self._wishes, self._loop, None, None
        if wishes is None:
            return None
        self._asked = self._asked_in_all(wishes, loop, users)
        self._first_number += 0 if loop is None else loop.slots_taken
        self._recording.flush()
        summary = summarize(self._recording, self._asked)
        if self._summary_path is not None:
            summary.write(self._summary_path)
        return summary

    def close(self) -> None:
        """Close the history; it stays."""
        self._flushing.kill()
        self._recording.close()

    def _wait_until_due(self, loop: OpenLoop, slot: Slot) -> None:
        # gevent's timers count from a cached time and can be early; the kernel's are late by up to 1 ms.
        try:
            while (left_ns := slot.due_ns - self._clock.now_ns()) > 0:
                gevent.sleep(left_ns / _NS_PER_S)
        except BaseException:
            loop.give_back(slot)
            raise

    def _place(self, connection: Connection, asked: Order, began_ns: int, intended_ns: int, wishes: Wishes) -> None:
        self._recording.begin()
        outcome, status, ended_ns, detail = Outcome.UNKNOWN, None, None, "the user was stopped before an answer came"
        try:
            answer = connection.post(asked.http(self._host), within_s=wishes.answer_within_s)
            ended_ns, status, outcome = self._clock.now_ns(), answer.status, outcome_of(answer.status)
            detail = "" if outcome is Outcome.OK else answer.body.decode("utf-8", "replace")[:DETAIL_MAX]
        except NotSentError as error:
            ended_ns, outcome, detail = self._clock.now_ns(), Outcome.FAILED, str(error)
        except (OSError, BrokenAnswerError) as error:
            detail = f"{type(error).__name__}: {error}"
        finally:
            # Also when the user is killed (GreenletExit): what was begun has a record, whatever happens.
            gave_up_ns = self._clock.now_ns()
            self._recording.end(
                Operation(
                    number=asked.number,
                    kind=KIND,
                    key=asked.key,
                    outcome=outcome,
                    intended_ns=intended_ns,
                    began_ns=began_ns,
                    ended_ns=ended_ns,
                    trace_id=asked.trace_id,
                    span_id=asked.span_id,
                    status=status,
                    detail=detail,
                    request=asked.body,
                ),
                gave_up_ns,
            )
            self._environment.events.request.fire(  # type: ignore[no-untyped-call]  # Locust's events have no types
                request_type="POST",
                name=PATH,
                response_time=((ended_ns or gave_up_ns) - intended_ns) / _NS_PER_MS,
                response_length=0,
                exception=None if outcome is Outcome.OK else f"{outcome}: {status or detail.partition(':')[0]}",
                context={},
            )

    def _asked_in_all(self, wishes: Wishes, loop: OpenLoop | None, users: int) -> Asked:
        before = self._asked
        ended_ns = loop.end_ns if loop is not None and loop.end_ns is not None else 0
        this = Asked(
            seed=wishes.seed,
            rate_per_s=wishes.rate_per_s,
            duration_s=0.0 if loop is None else (ended_ns - loop.start_ns) / _NS_PER_S,
            slots=0 if loop is None else loop.slots,
            missed_slots=0 if loop is None else loop.missed,
            overdue_slots=0 if loop is None else loop.overdue,
            lag_max_ms=0.0 if loop is None else loop.lag_max_ns / _NS_PER_MS,
            users=users,
            users_busy_max=0 if loop is None else loop.in_flight_max,
            drain_s=self._drain_s,
            cpu_s=time.process_time() - self._cpu_began_s,
        )
        return this if before is None else before.plus(this)

    def _flush_for_ever(self) -> None:
        while True:
            gevent.sleep(FLUSH_EVERY_S)
            try:
                self._recording.flush()
            except OSError as error:
                logger.error("the history cannot be written now: %s", error)  # noqa: TRY400 - a full disk, no riddle


class Clock:
    """Nanoseconds since the epoch that never step: one look at the wall clock, then the monotonic one."""

    def __init__(self) -> None:
        """Look at the wall clock."""
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """What time it is."""
        return time.monotonic_ns() + self._offset_ns


class Customer(User):
    """A place for one order in flight. Users are not the load here, the rate is."""

    test: ClassVar[LoadTest | None] = None

    @task
    def place_orders(self) -> None:
        """Place orders until there is nothing left to place, then wait to be stopped."""
        if self.test is not None:
            self.test.use()
        while True:
            gevent.sleep(1.0)
