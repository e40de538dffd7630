"""The lightest collector there can be: it reads OTLP requests, counts their spans and forgets them.

    python -m system.benchmarks.sink PORT REPORT

Promises: every request is read whole and answered 200; at SIGTERM the file REPORT says what came, and, by the numbers
the spans carry (P10), how many were made and never came.

Does not: keep spans, decode them (but the last few), or understand compressed or chunked requests.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from system.benchmarks.parts import LOOPBACK

LAST_REQUESTS = 16
"""So many requests of each process are kept: the highest number of a span is among them, for spans end nearly in the
order in which they begin."""

RESOURCE_BYTES_MAX = 4096

_SEQ = b"telemetry.seq"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(slots=True)
class Sender:
    """What came from one boot of one process."""

    spans: int = 0
    last: deque[bytes] = field(default_factory=lambda: deque(maxlen=LAST_REQUESTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkReport:
    """What came in all. spans_lost: spans that were numbered and never came."""

    requests: int
    bytes: int
    spans: int
    spans_lost: int


class Sink:
    """Counts requests, by the process that sent them."""

    def __init__(self) -> None:
        self._senders: dict[bytes, Sender] = {}
        self._requests = 0
        self._bytes = 0

    def take(self, body: bytes) -> None:
        """Count one request."""
        sender = self._senders.setdefault(_resource_in(body), Sender())
        # Every span carries its number, so counting these counts spans, for half the price of walking through them.
        sender.spans += body.count(_SEQ)
        sender.last.append(body)
        self._requests += 1
        self._bytes += len(body)

    def report(self) -> SinkReport:
        """What came so far."""
        spans = sum(sender.spans for sender in self._senders.values())
        made = sum(max(map(_highest_number, sender.last), default=0) for sender in self._senders.values())
        return SinkReport(requests=self._requests, bytes=self._bytes, spans=spans, spans_lost=made - spans)


def read_report(path: Path) -> SinkReport:
    """What a sink that ended has left behind."""
    return SinkReport(**json.loads(path.read_bytes()))


def main() -> None:
    """Serve until SIGTERM."""
    port, report = int(sys.argv[1]), Path(sys.argv[2])
    sink = Sink()
    uvloop.run(_serve(port, sink))
    report.write_text(json.dumps(asdict(sink.report())), encoding="utf-8")


async def _serve(port: int, sink: Sink) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: _Connection(sink), LOOPBACK, port)
    await stop.wait()
    server.close()


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._came = bytearray()
        self._whole_at = 0  # 0: the head is not read yet
        self._body_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is none of asyncio's classes, so a check would be wrong.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._came += data
        while self._came and self._is_whole():
            self._sink.take(bytes(memoryview(self._came)[self._body_at : self._whole_at]))
            del self._came[: self._whole_at]
            self._whole_at = 0
            self._transport.write(_ANSWER)

    def _is_whole(self) -> bool:
        if not self._whole_at:
            head_end = self._came.find(b"\r\n\r\n")
            if head_end < 0:
                return False
            length = _LENGTH.search(self._came, 0, head_end)
            self._body_at = head_end + 4
            self._whole_at = self._body_at + (int(length[1]) if length else 0)
        return len(self._came) >= self._whole_at


def _resource_in(body: bytes) -> bytes:
    """The resource of the request's first spans, which names the process and its boot."""
    # ResourceSpans is field 1, length-delimited; its Resource is field 1 again.
    _, at = _varint(body, 1)
    length, at = _varint(body, at + 1)
    return body[at : at + min(length, RESOURCE_BYTES_MAX)]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(content):
        number |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:  # noqa: PLR2004 - the bit that says there is more
            break
        shift += 7
    return number, at


def _highest_number(body: bytes) -> int:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: PLC0415

    return max(
        (
            attribute.value.int_value
            for of_process in ExportTraceServiceRequest.FromString(body).resource_spans
            for of_scope in of_process.scope_spans
            for span in of_scope.spans
            for attribute in span.attributes
            if attribute.key == _SEQ.decode()
        ),
        default=0,
    )


if __name__ == "__main__":
    main()
