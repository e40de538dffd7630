"""Whether orders from before the start may be known to nobody but the stream.

An order is found again by the table, which the projection fills, or by the broker's memory of message ids, which lasts
for the dedup window. After an outage longer than that, what is not in the table yet is remembered by nothing that is
asked, and the same key could become another order (P6). Until the projection is through with that, it is not safe to
take an order under a key that a customer chose.

Promises: never in the way after a short outage, because the broker remembers what the table does not have yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime

import msgspec

from system import topology
from system.jetstream import Connection, ConsumerSpec, RequestError

log = logging.getLogger(__name__)

REMEMBERED_S = topology.DEDUP_WINDOW_S / 2
"""What is younger is in the broker's memory, and in the table before it leaves that."""
LOOK_EVERY_S = 0.1
ASK_WITHIN_S = 2.0

_NOT_FOUND = 404


class _Error(msgspec.Struct):
    code: int = 0
    description: str = ""


class _Message(msgspec.Struct):
    seq: int
    time: datetime


class _Floor(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _Answer(msgspec.Struct):
    error: _Error | None = None
    message: _Message | None = None
    ack_floor: _Floor = _Floor()


class CatchingUp:
    """Watches the projection of created orders from its start until it is through with what was there."""

    def __init__(self, *, is_over: bool = False) -> None:
        self.is_over = is_over

    async def watch(self, connection: Connection, projection: ConsumerSpec) -> None:
        """Return when it is over. A broker that does not answer is asked again."""
        last: int | None = None
        while not self.is_over:
            try:
                if last is None:
                    last = await _last(connection, projection)
                self.is_over = await self._is_through(connection, projection, last)
            except RequestError as error:
                log.info("how far orders are known again cannot be asked now: %s", error)
            if not self.is_over:
                await asyncio.sleep(LOOK_EVERY_S)

    async def _is_through(self, connection: Connection, projection: ConsumerSpec, last: int) -> bool:
        info = await _ask(connection, f"$JS.API.CONSUMER.INFO.{projection.stream}.{projection.name}", {})
        if info.ack_floor.stream_seq >= last:
            return True
        oldest = await _ask(
            connection,
            f"$JS.API.STREAM.MSG.GET.{projection.stream}",
            {"seq": info.ack_floor.stream_seq + 1, "next_by_subj": projection.subject},
        )
        return oldest.message is None or _age_s(oldest.message) < REMEMBERED_S


async def _last(connection: Connection, projection: ConsumerSpec) -> int:
    """Where the last order of before the start is stored, 0 if there is none."""
    found = await _ask(connection, f"$JS.API.STREAM.MSG.GET.{projection.stream}", {"last_by_subj": projection.subject})
    return 0 if found.message is None else found.message.seq


async def _ask(connection: Connection, subject: str, question: dict[str, object]) -> _Answer:
    payload = await connection.request(subject, msgspec.json.encode(question), within_s=ASK_WITHIN_S)
    try:
        answer = msgspec.json.decode(payload, type=_Answer)
    except msgspec.DecodeError as error:
        raise RequestError(f"{subject}: the answer makes no sense: {error}") from None
    if answer.error is not None and answer.error.code != _NOT_FOUND:
        raise RequestError(f"{subject}: {answer.error.description}")
    return answer


def _age_s(message: _Message) -> float:
    """By our clock; the broker's may differ by less than the half window that is left."""
    return time.time() - message.time.timestamp()
