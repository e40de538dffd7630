"""Reading from a PostgreSQL server: questions that wait at the same time share a round trip where they can.

Promises: a question whose statement has a `key` is asked together with whatever others of that statement wait, in one
pipeline (12 us for client and server together instead of 60). What waits is bounded in number and in time; without a
connection all are told at once. Whoever is cancelled takes no connection with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic

from system.database.errors import DatabaseError
from system.database.postgres_lines import FAILURES, UNSENDABLE, Connection, Line, said
from system.database.statements import Row, Statement, Value

log = logging.getLogger(__name__)

WAITING_MAX = 8192
SHARE_MAX = 64
"""Questions in one round trip."""

Rows = list[tuple[Value, ...]]


class _Question:
    """One call of `read`."""

    __slots__ = ("answer", "asked_at_s", "parameters", "statement")

    def __init__(self, statement: Statement, parameters: Row, answer: asyncio.Future[Rows]) -> None:
        self.statement = statement
        self.parameters = parameters
        self.answer = answer
        self.asked_at_s = monotonic()

    def fail(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(DatabaseError(why))


class Readers:
    """Some connections and the line before them. location: for people. answer_within_s: bound for each question."""

    def __init__(self, lines: Sequence[Line], *, location: str, answer_within_s: float) -> None:
        self._lines = lines
        self._location = location
        self._answer_within_s = answer_within_s
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Question] = deque()
        self._idle: list[asyncio.Future[None]] = []

    @property
    def is_up(self) -> bool:
        """Whether anything can be read now."""
        return any(line.is_open for line in self._lines)

    async def read(self, statement: Statement, parameters: Row) -> Rows:
        """What the statement finds."""
        if not self.is_up:
            raise DatabaseError(f"not read: the database {self._location} is away")
        if len(self._waiting) >= WAITING_MAX:
            raise DatabaseError(f"not read: {WAITING_MAX} others wait for the database {self._location} already")
        answer: asyncio.Future[Rows] = self._loop.create_future()
        if not self._waiting:
            self._wake_one()
        self._waiting.append(_Question(statement, parameters, answer))
        return await answer

    async def serve(self, line: Line, first_open: asyncio.Future[None]) -> None:
        """Keep one of the lines open, and ask on it what is to be asked, for ever."""
        while True:
            lost = await line.open()
            if not first_open.done():
                first_open.set_result(None)
            while line.is_open:
                if questions := self._take():
                    line.busy_since_s = monotonic()
                    await self._ask(line.connection, questions)
                    line.busy_since_s = None
                else:
                    woken: asyncio.Future[None] = self._loop.create_future()
                    self._idle.append(woken)
                    await asyncio.wait((woken, lost), return_when=asyncio.FIRST_COMPLETED)
                    if not woken.done():
                        self._idle.remove(woken)
            if self._waiting:
                self._wake_one()  # it was our turn, and we are gone
            if not self.is_up:
                self.fail_all("is away: the connections were lost")

    def look(self) -> None:
        """Cut off whoever does not answer in time, and tell those who wait too long."""
        too_early_s = monotonic() - self._answer_within_s
        for line in self._lines:
            if line.busy_since_s is not None and line.busy_since_s < too_early_s:
                log.error("the database %s has not answered a read for %g s", self._location, self._answer_within_s)
                line.cut()
        while self._waiting and self._waiting[0].asked_at_s < too_early_s:
            self._waiting.popleft().fail(f"not read: the database {self._location} is too slow")

    def fail_all(self, why: str) -> None:
        """Tell all who wait."""
        while self._waiting:
            self._waiting.popleft().fail(f"not read: the database {self._location} {why}")

    def _wake_one(self) -> None:
        if self._idle:
            self._idle.pop().set_result(None)

    def _take(self) -> list[_Question]:
        """The head of the line, and those behind it that can share its round trip."""
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()  # whoever waited was cancelled
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        questions = [first]
        if first.statement.key is not None:
            others: list[_Question] = []
            while self._waiting and len(questions) < SHARE_MAX:
                question = self._waiting.popleft()
                (questions if question.statement is first.statement else others).append(question)
            self._waiting.extendleft(reversed(others))
        if self._waiting:
            self._wake_one()
        return questions

    async def _ask(self, connection: Connection, questions: Sequence[_Question]) -> None:
        statement = questions[0].statement
        try:
            if len(questions) > 1:
                answers = await _shared_answers(connection, statement, [question.parameters for question in questions])
            else:
                records = await connection.fetch(statement.sql, *questions[0].parameters)
                answers = [[tuple(record) for record in records]]
        except (*FAILURES, *UNSENDABLE) as error:
            if len(questions) > 1 and not connection.is_closed():
                for question in questions:  # one of them is at fault, or the statement
                    await self._ask(connection, (question,))
            for question in questions:
                question.fail(f"the database {self._location} could not be read: {said(error)}")
            return
        for question, answer in zip(questions, answers, strict=True):
            if not question.answer.done():
                question.answer.set_result(answer)


async def _shared_answers(connection: Connection, statement: Statement, parameters: Sequence[Row]) -> list[Rows]:
    """The answer to each; rows are told apart by their first column, which is the key (see `Statement`)."""
    found: dict[Value, Rows] = {key: [] for (key,) in parameters}
    for record in await connection.fetchmany(statement.sql, [(key,) for key in found]):
        row = tuple(record)
        if row[0] not in found:
            raise ValueError(f"the first column of {statement.sql.strip()!r} is not its key")
        found[row[0]].append(row)
    return [found[key] for (key,) in parameters]
