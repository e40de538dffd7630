"""Group commit: writes that wait at the same time share one transaction, and its fsync.

Promises: a write waits at most `GATHER_S` for company, then for the commit before it, then for its own; the one that
waits longest is always in the next group. All rows of a write share one transaction. A group that the database refuses
because of a row is halved until that row's writer stands alone, so that it fails and nobody else does. What waits is
bounded in rows, what a group holds too, and every write is answered in time: `DatabaseError` if it was not begun
within `WAIT_WITHIN_S`, `DatabaseUnknownError` if its commit takes longer than `ANSWER_WITHIN_S`. A write whose waiter
is cancelled before its group is formed is left out.

Does not: know what kind of database it is, or try a failed group again, but for one that a deadlock chose as victim.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Hashable, Sequence
from itertools import groupby
from time import monotonic
from typing import Protocol

from opentelemetry.trace import SpanKind

from system.database.errors import DatabaseConflictError, DatabaseError, DatabasePartError, DatabaseUnknownError
from system.database.statements import Row, Statement, Value
from system.metrics import Metrics
from system.telemetry import ROOT, LeanTracer, Parent, SpanTemplate

log = logging.getLogger(__name__)

GATHER_S = 0.005
"""How long a write waits for company: a commit costs about the same for one row as for fifty."""
GROUP_ROWS_MAX = 512
"""In one transaction; only a single write may have more. It keeps the event loop for some 2 ms with SQLite."""
WAITING_ROWS_MAX = 65_536
"""More than three seconds at 20,000 rows/s; whoever comes after that is told at once."""
WAIT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 5.0
"""Far above the disk stalls that were seen (up to 0.94 s), and below every ack wait that anybody needs."""
LOOK_EVERY_S = 0.25
"""How exactly the two bounds above are kept."""
PROBE_EVERY_S = 1.0
"""How often a database that nobody writes to is asked whether it is up."""
CONFLICT_TRIES_MAX = 3
LINKS_MAX = 128
"""As many as the OpenTelemetry SDK would keep."""
CLOSE_WITHIN_S = 5.0

Batch = tuple[Statement, Sequence[Row]]


class Backend(Protocol):
    """One kind of database, as group commit needs it.

    system, namespace: what spans call it. location: for people, without a password. mixes_statements: whether a
    transaction may hold several statements. probes_always: it can go down without being asked anything. why_down: what
    was seen when it went down.
    """

    system: str
    namespace: str
    location: str
    mixes_statements: bool
    probes_always: bool
    why_down: str

    @property
    def is_up(self) -> bool:
        """Whether it works, as far as is known."""

    @property
    def can_try(self) -> bool:
        """False: not even connected."""

    async def commit(self, batches: Sequence[Batch]) -> None:
        """One transaction, durable when this returns; `DatabaseError` and its kinds if it is not."""

    async def probe(self) -> None:
        """Find out whether it is up, by trying; never while a commit is under way."""

    async def read(self, statement: Statement, parameters: Row) -> list[tuple[Value, ...]]:
        """What is committed."""

    def look(self) -> None:
        """Called every `LOOK_EVERY_S`, for whatever bounds it keeps itself."""

    def give_up(self) -> None:
        """Stop waiting for the commit or the probe in flight, if that can be done."""

    async def close(self) -> None:
        """Let go of it."""


class _Write:
    """One call of `write`."""

    __slots__ = ("asked_at_s", "durable", "link", "rows", "statement")

    def __init__(
        self,
        statement: Statement,
        rows: Sequence[Row],
        durable: asyncio.Future[None],
        asked_at_s: float,
        link: Parent | None,
    ) -> None:
        self.statement = statement
        self.rows = rows
        self.durable = durable
        self.asked_at_s = asked_at_s
        self.link = link

    def keys(self, key: int) -> set[Hashable]:
        """What its rows are about; nothing, if one is no row or its key no value: it will be refused."""
        try:
            return {row[key - 1] for row in self.rows}
        except (IndexError, TypeError):
            return set()


class GroupedDatabase:
    """A `Database` over any backend that is already open. It belongs to the event loop it is made in."""

    def __init__(self, backend: Backend, *, name: str, tracer: LeanTracer, metrics: Metrics) -> None:
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Write] = deque()
        self._waiting_rows = 0
        self._taken: Sequence[_Write] = ()
        self._in_flight: Sequence[_Write] = ()
        self._is_asked = False
        self._asked_at_s = monotonic()
        self._is_stalled = False
        self._is_closing = False
        self._is_probe_due = False
        self._idle: asyncio.Future[None] | None = None
        self._rows = metrics.counter("db_rows", "Rows committed to the database")
        self._failures = metrics.counter("db_commit_failures", "Groups of rows that could not be committed")
        self._wait_seconds = metrics.histogram("db_wait_seconds", "How long a write waited until its commit began")
        self._commit_seconds = metrics.histogram("db_commit_seconds", "How long a commit took")
        self._tracer = tracer
        self._span = SpanTemplate(
            "commit",
            SpanKind.CLIENT,
            {"db.system.name": backend.system, "db.namespace": backend.namespace, "db.operation.name": "COMMIT"},
            ("db.operation.batch.size",),
        )
        self._writer = self._loop.create_task(self._write_all(), name=f"{name}-database")
        self._writer.add_done_callback(self._on_writer_done)
        self._look_timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    @property
    def is_up(self) -> bool:
        """Whether it can be written to, as far as is known now."""
        return self._backend.is_up and self._can_take

    async def write(self, statement: Statement, rows: Sequence[Row], *, link: Parent | None = None) -> None:
        """As `Database` has it."""
        await self.write_soon(statement, rows, link=link)

    def write_soon(
        self, statement: Statement, rows: Sequence[Row], *, link: Parent | None = None
    ) -> asyncio.Future[None]:
        """As `Database` has it."""
        loop = self._loop
        durable: asyncio.Future[None] = loop.create_future()
        if not rows:
            durable.set_result(None)
        elif self._waiting_rows >= WAITING_ROWS_MAX or not self._can_take or not self._backend.can_try:
            _fail(durable, DatabaseError(f"{_rows(len(rows))} not written: {self._why_not()}"))
        else:
            self._waiting.append(_Write(statement, rows, durable, monotonic(), link))
            self._waiting_rows += len(rows)
            if self._idle is not None:
                self._wake()
        return durable

    async def read(self, statement: Statement, parameters: Row = ()) -> list[tuple[Value, ...]]:
        """As `Database` has it."""
        return await self._backend.read(statement, parameters)

    async def close(self) -> None:
        """Commit what waits, in `CLOSE_WITHIN_S`, take nothing more, and let go of the backend."""
        self._is_closing = True
        self._wake()
        try:
            await asyncio.wait((self._writer,), timeout=CLOSE_WITHIN_S)
        finally:
            self._look_timer.cancel()
            self._writer.cancel()
            self._fail_all(f"the database {self._backend.location} was closed")
            await self._backend.close()

    @property
    def _can_take(self) -> bool:
        return not (self._is_stalled or self._is_closing or self._writer.done())

    def _why_not(self) -> str:
        location = self._backend.location
        if self._is_closing:
            return f"the database {location} is being closed"
        if self._is_stalled:
            return f"the database {location} has not answered for {monotonic() - self._asked_at_s:.1f} s"
        if self._writer.done():
            return f"the writer of the database {location} broke"
        if not self._backend.can_try:
            return self._backend.why_down
        return f"{self._waiting_rows} rows wait for the database {location} already"

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    async def _write_all(self) -> None:
        while True:
            if not self._waiting:
                if self._is_closing:
                    return
                if self._is_probe_due:
                    self._is_probe_due = False
                    await self._ask(self._backend.probe())
                    continue
                self._idle = self._loop.create_future()
                await self._idle
                continue
            gather_s = self._waiting[0].asked_at_s + GATHER_S - monotonic()
            if gather_s > 0 and self._waiting_rows < GROUP_ROWS_MAX and not self._is_closing:
                await asyncio.sleep(gather_s)
            if group := self._take():
                await self._commit(group)

    async def _ask(self, question: Coroutine[object, object, None]) -> None:
        """Await the backend, under the eyes of `_look`."""
        self._is_asked = True
        self._asked_at_s = monotonic()
        try:
            await question
        finally:
            self._is_asked = False
            self._is_stalled = False

    def _take(self) -> list[_Write]:
        """The head of the line, and those behind it who may go with it."""
        group: list[_Write] = []
        rows = 0
        passed: list[_Write] = []
        passed_keys: set[Hashable] = set()
        waiting = self._waiting
        while waiting and len(passed) < GROUP_ROWS_MAX:
            write = waiting[0]
            if write.durable.done():
                self._waiting_rows -= len(waiting.popleft().rows)  # whoever waited was cancelled, or was told already
                continue
            if group and rows + len(write.rows) > GROUP_ROWS_MAX:
                break
            if not group or self._may_join(write, group[0].statement, passed_keys):
                group.append(waiting.popleft())
                rows += len(write.rows)
                continue
            key = write.statement.key
            if key is None or group[0].statement.key is None:
                break
            passed.append(waiting.popleft())
            passed_keys |= write.keys(key)
        waiting.extendleft(reversed(passed))
        self._waiting_rows -= rows
        return group

    def _may_join(self, write: _Write, statement: Statement, passed_keys: set[Hashable]) -> bool:
        if self._backend.mixes_statements:
            return True
        if write.statement is not statement:
            return False
        key = statement.key
        return not passed_keys or (key is not None and passed_keys.isdisjoint(write.keys(key)))

    async def _commit(self, group: Sequence[_Write]) -> None:
        """Commit a group, or as much of it as can be, and tell its writers."""
        self._taken = group
        began_at_s = monotonic()
        for write in group:
            self._wait_seconds.observe(began_at_s - write.asked_at_s)
        # The part at the end is next.
        parts = [group]
        while parts:
            part = parts.pop()
            failure = await self._try(part)
            if failure is None:
                self._settle(part, None)
            elif isinstance(failure, DatabasePartError) and len(part) > 1:
                middle = len(part) // 2
                parts += (part[middle:], part[:middle])
            else:
                self._failures.add()
                self._settle(part, failure)
                if not isinstance(failure, DatabasePartError):
                    # It would be in vain for the rest, and they need to know soon.
                    untried = [write for rest in parts for write in rest]
                    self._settle(untried, DatabaseError(f"not written: {failure}"))
                    return

    async def _try(self, part: Sequence[_Write]) -> DatabaseError | None:
        """Commit these in one transaction; whoever among them is in the way of another process may need several."""
        batches = _batches(part)
        rows = sum(len(batch) for _, batch in batches)
        links = [write.link for write in part if write.link is not None][:LINKS_MAX]
        # A root: it belongs to as many orders as it has rows.
        span = self._tracer.begin(self._span, ROOT, links=links)
        began_at_s = monotonic()
        self._in_flight = part
        failure = await self._committed(batches)
        self._in_flight = ()
        self._commit_seconds.observe(monotonic() - began_at_s)
        if failure is None:
            self._rows.add(rows)
            span.end(rows)
        else:
            span.fail(str(failure), rows)
        return failure

    async def _committed(self, batches: Sequence[Batch]) -> DatabaseError | None:
        for tries_left in reversed(range(CONFLICT_TRIES_MAX)):
            try:
                await self._ask(self._backend.commit(batches))
            except DatabaseError as error:
                if not tries_left or not isinstance(error, DatabaseConflictError):
                    return error
            else:
                break
        return None

    def _settle(self, writes: Sequence[_Write], failure: DatabaseError | None) -> None:
        for write in writes:
            if write.durable.done():
                continue  # whoever waited was cancelled, or was told already
            if failure is None:
                write.durable.set_result(None)
            else:
                _fail(write.durable, type(failure)(*failure.args))  # each its own: raising one changes it

    def _fail_waiting(self, failure: DatabaseError) -> None:
        self._settle(self._waiting, failure)
        self._waiting.clear()
        self._waiting_rows = 0

    def _fail_all(self, why: str) -> None:
        self._settle(self._in_flight, DatabaseUnknownError(f"a commit was not answered before {why}"))
        self._settle(self._taken, DatabaseError(f"not written: {why}"))
        self._fail_waiting(DatabaseError(f"not written: {why}"))

    def _look(self) -> None:
        """Tell those who have waited too long, and all who wait for a database that went away."""
        self._look_timer = self._loop.call_later(LOOK_EVERY_S, self._look)
        now_s = monotonic()
        backend = self._backend
        backend.look()
        if self._is_asked and not self._is_stalled and now_s - self._asked_at_s > ANSWER_WITHIN_S:
            self._is_stalled = True
            log.error("the database %s has not answered for %g s", backend.location, ANSWER_WITHIN_S)
            self._settle(self._in_flight, DatabaseUnknownError(f"no answer to a commit within {ANSWER_WITHIN_S:g} s"))
            backend.give_up()
        if self._is_stalled or not backend.can_try:
            self._fail_waiting(DatabaseError(f"not written: {self._why_not()}"))
        for write in self._waiting:
            if now_s - write.asked_at_s <= WAIT_WITHIN_S:
                break
            self._settle((write,), DatabaseError(f"not written: not begun within {WAIT_WITHIN_S:g} s"))
        may_probe = backend.can_try and (backend.probes_always or not backend.is_up)
        if may_probe and self._idle is not None and now_s - self._asked_at_s > PROBE_EVERY_S:
            self._is_probe_due = True
            self._wake()

    def _on_writer_done(self, writer: asyncio.Task[None]) -> None:
        if writer.cancelled() or (error := writer.exception()) is None:
            return
        log.critical("the writer of the database %s broke", self._backend.location, exc_info=error)
        self._fail_all(f"the writer broke: {error!r}")


def _batches(group: Sequence[_Write]) -> list[Batch]:
    batches: list[Batch] = []
    for statement, writes in groupby(group, key=lambda write: write.statement):
        rows: list[Row] = []
        for write in writes:
            rows.extend(write.rows)
        batches.append((statement, rows))
    return batches


def _fail(durable: asyncio.Future[None], failure: DatabaseError) -> None:
    durable.set_exception(failure)
    durable.exception()  # counted here already: nobody needs to look


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
