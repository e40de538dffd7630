"""Orders at a steady rate, in an open loop, from one light process.

    python -m system.benchmarks.generator PORT RATE SECONDS CONNECTIONS FILE

Promises: order n is due n/RATE seconds after the beginning, whatever became of those before it; its latency counts from
then. After SECONDS, or at SIGTERM, no more become due. An order that finds every connection busy waits for one, in the
order in which they were due. What was due and never sent, and what was sent and never answered, is on record like
everything else. One request at a time is on a connection, none is sent twice. The beginning (Unix time in ns) is
printed once all connections are made; FILE holds what happened to each order (`read_record`).

Does not: pipeline, vary the order, understand chunked answers.

Light, because it shares the cores with what it measures: requests come from one template, an answer is searched for
its length and nothing else, and what is due together is sent together on a tick: 10 µs of CPU an order at 10,000/s. The
users of `loadtests`, who keep histories and whom people can change, cost ten times that.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from system.benchmarks.parts import LOOPBACK

TICK_S = 0.001
LEAD_S = 0.1
"""From the last connection made to the first order due."""

ANSWERS_WITHIN_S = 5.0
"""How long after the last order was due its answer is waited for."""

RECONNECT_EVERY_S = 0.1
ANSWER_BYTES_MAX = 64 * 1024

_NS = 1_000_000_000
AMOUNT_MINOR = 1250
_BODY = b'{"customer_id": "c%04d", "total_amount": 12.50, "currency": "EUR"}'
_CUSTOMERS = 1000
_REQUEST = (
    b"POST /orders HTTP/1.1\r\nhost: orders\r\ncontent-type: application/json\r\n"
    b"idempotency-key: order-%%08d\r\ncontent-length: %d\r\n\r\n%s"
) % (len(_BODY % 0), _BODY)
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_UNAVAILABLE = 503
_NAMES_ORDER = b'"order_id"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What happened to each order, by its number: Unix times in ns and HTTP statuses, 0 where there is none.

    is_unknown: 1 where the answer was a 503 that names the order, which says that nobody can tell (P5).
    """

    sent_ns: array.array[int]
    answered_ns: array.array[int]
    status: array.array[int]
    is_unknown: array.array[int] = field(default_factory=lambda: array.array("b"))

    def cut(self, total: int) -> None:
        """Forget all orders from this number on."""
        for column in self.columns:
            del column[total:]

    @property
    def columns(self) -> tuple[array.array[int], ...]:
        """In the order in which they stand in the file."""
        return self.sent_ns, self.answered_ns, self.status, self.is_unknown


def due_ns(number: int, *, began_ns: int, rate_per_s: int) -> int:
    """When an order is due."""
    return began_ns + number * _NS // rate_per_s


def order_id_of(number: int) -> str:
    """The id of an order."""
    return f"order-{number:08d}"


def number_of(order_id: str) -> int:
    """The number of the order under this id."""
    return int(order_id.removeprefix("order-"))


def read_record(path: Path) -> Record:
    """What a generator that ended has left behind."""
    content = path.read_bytes()
    record = _empty(0)
    total = len(content) // sum(column.itemsize for column in record.columns)
    at = 0
    for column in record.columns:
        until = at + total * column.itemsize
        column.frombytes(content[at:until])
        at = until
    return record


class Generator:
    """One run."""

    def __init__(self, *, port: int, rate_per_s: int, seconds: float, connections: int) -> None:
        self._port = port
        self._rate_per_s = rate_per_s
        self._total = int(rate_per_s * seconds)
        self._connections_max = connections
        self._loop = asyncio.get_running_loop()
        self._free: list[_Connection] = []  # a stack: the one used last is the warmest
        self._connections: set[_Connection] = set()
        self._in_flight = 0
        self._next = 0
        self._due = 0
        self._began_ns = 0
        self._all_answered = asyncio.Event()
        self.record = _empty(self._total)

    async def run(self) -> None:
        """Connect, say when it begins, send all that becomes due, and wait for the answers."""
        try:
            await self._run()
        finally:
            for connection in list(self._connections):
                connection.transport.abort()

    def stop(self) -> None:
        """Let nothing more become due; what is due by now has its time."""
        self._total = self._due
        self.record.cut(self._total)
        self._loop.call_later(ANSWERS_WITHIN_S, self._all_answered.set)
        self._check_all_answered()

    async def _run(self) -> None:
        await self._connect()
        if self._missing:
            raise ConnectionError(f"{self._missing} of {self._connections_max} connections were refused")
        self._began_ns = time.time_ns() + int(LEAD_S * _NS)
        sys.stdout.write(f"{self._began_ns}\n")
        sys.stdout.flush()
        self._tick()
        end_ns = due_ns(self._total, began_ns=self._began_ns, rate_per_s=self._rate_per_s)
        within_s = (end_ns - time.time_ns()) / _NS + ANSWERS_WITHIN_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as tasks:
                keeper = tasks.create_task(self._keep_connected())
                await self._all_answered.wait()
                keeper.cancel()

    # What connections call.

    def opened(self, connection: _Connection) -> None:
        """A connection was made."""
        self._connections.add(connection)
        self._free.append(connection)
        self._send_due(time.time_ns())

    def answered(self, connection: _Connection, status: int, *, is_unknown: bool) -> None:
        """An order's answer is whole, and its connection free for the one that waits longest."""
        now_ns = time.time_ns()
        self.record.answered_ns[connection.number] = now_ns
        self.record.status[connection.number] = status
        self.record.is_unknown[connection.number] = is_unknown
        connection.number = -1
        self._in_flight -= 1
        self._free.append(connection)
        if self._next < self._due:
            self._send_due(now_ns)
        else:
            self._check_all_answered()

    def closed(self, connection: _Connection) -> None:
        """A connection is gone, and with it the answer that was to come over it."""
        self._connections.discard(connection)
        if connection.number >= 0:
            self._in_flight -= 1
        else:
            self._free.remove(connection)
        self._check_all_answered()

    def _check_all_answered(self) -> None:
        if self._next == self._total and not self._in_flight:
            self._all_answered.set()

    @property
    def _missing(self) -> int:
        return self._connections_max - len(self._connections)

    def _tick(self) -> None:
        now_ns = time.time_ns()
        self._due = max(0, min((now_ns - self._began_ns) * self._rate_per_s // _NS + 1, self._total))
        self._send_due(now_ns)
        if self._due < self._total:
            next_ns = due_ns(self._due, began_ns=self._began_ns, rate_per_s=self._rate_per_s)
            self._loop.call_later(max(TICK_S, (next_ns - now_ns) / _NS), self._tick)

    def _send_due(self, now_ns: int) -> None:
        while self._next < self._due and self._free:
            connection = self._free.pop()
            number = connection.number = self._next
            self._next += 1
            self._in_flight += 1
            self.record.sent_ns[number] = now_ns
            connection.transport.write(_REQUEST % (number, number % _CUSTOMERS))

    async def _keep_connected(self) -> None:
        while True:
            await asyncio.sleep(RECONNECT_EVERY_S)
            if self._missing:
                await self._connect()

    async def _connect(self) -> None:
        for _ in range(self._missing):
            try:
                await self._loop.create_connection(lambda: _Connection(self), LOOPBACK, self._port)
            except OSError:
                return  # who refuses one refuses all


class _Connection(asyncio.Protocol):
    """One keep-alive connection. number: of the order in flight on it, -1 for none."""

    def __init__(self, generator: Generator) -> None:
        self.number = -1
        self.transport: asyncio.WriteTransport
        self._generator = generator
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is none of asyncio's classes, so a check would be wrong.
        self.transport = cast("asyncio.WriteTransport", transport)
        self._generator.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._came:
            data = self._came + data
        head_end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, head_end) if head_end > 0 else None
        if length is None or len(data) < head_end + 4 + int(length[1]):
            self._came = data
            if (head_end > 0 and length is None) or len(data) > ANSWER_BYTES_MAX:
                self.transport.abort()  # nobody could tell where this answer ends
            return
        self._came = b""
        if self.number < 0:
            self.transport.abort()  # an answer that nobody asked for
            return
        status = int(data[9:12])
        self._generator.answered(
            self, status, is_unknown=status == _UNAVAILABLE and data.find(_NAMES_ORDER, head_end) > 0
        )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._generator.closed(self)


def _empty(total: int) -> Record:
    return Record(
        sent_ns=array.array("q", bytes(8 * total)),
        answered_ns=array.array("q", bytes(8 * total)),
        status=array.array("h", bytes(2 * total)),
        is_unknown=array.array("b", bytes(total)),
    )


def main() -> None:
    """Run once and leave the record."""
    port, rate_per_s, seconds, connections, file = sys.argv[1:]
    gc.disable()  # nothing here makes a cycle

    async def run() -> Record:
        generator = Generator(
            port=int(port), rate_per_s=int(rate_per_s), seconds=float(seconds), connections=int(connections)
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, generator.stop)
        await generator.run()
        return generator.record

    record = uvloop.run(run())
    with Path(file).open("wb") as output:
        for column in record.columns:
            column.tofile(output)


if __name__ == "__main__":
    main()
