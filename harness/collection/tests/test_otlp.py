"""The OTLP receiver over real HTTP."""

from __future__ import annotations

import gzip
import resource
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from harness.collection.otlp import PROTOBUF, receiving
from harness.collection.spans import spans_of
from harness.errors import EnvironmentFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.collection.otlp import OtlpReceiver


def body(*span_ids: bytes) -> bytes:
    """Make a request with one span for each id."""
    spans = [OtlpSpan(trace_id=b"t" * 16, span_id=span_id, name="n") for span_id in span_ids]
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])]
    ).SerializeToString()


def received(receiver: OtlpReceiver) -> list[bytes]:
    """Return the ids of all spans that are on disk."""
    return [span.span_id for request in receiver.requests() for _origin, span in spans_of(request)]


@asynccontextmanager
async def exporter(path: Path) -> AsyncIterator[tuple[OtlpReceiver, aiohttp.ClientSession]]:
    """Serve a receiver and open a client to it."""
    async with receiving(path, host="127.0.0.1", port=0) as receiver, aiohttp.ClientSession(receiver.url) as session:
        yield receiver, session


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_that_was_acknowledged_is_on_disk(tmp_path: Path, encoding: str) -> None:
    """Plain and gzip arrive as the same spans."""
    async with exporter(tmp_path / "spans.otlp") as (receiver, session):
        sent = body(b"a" * 8, b"b" * 8)
        answer = await session.post(
            "/v1/traces",
            data=gzip.compress(sent) if encoding == "gzip" else sent,
            headers={"Content-Type": PROTOBUF, "Content-Encoding": encoding},
        )

        assert answer.status == 200
        assert not ExportTraceServiceResponse.FromString(await answer.read()).HasField("partial_success")
        assert received(receiver) == [b"a" * 8, b"b" * 8]
        assert (receiver.bodies, receiver.spans, receiver.bodies_refused) == (1, 2, 0)


async def test_spans_with_impossible_ids_are_a_partial_success(tmp_path: Path) -> None:
    """The good ones are kept, the others counted and named to the sender."""
    async with exporter(tmp_path / "spans.otlp") as (receiver, session):
        answer = await session.post(
            "/v1/traces", data=body(b"a" * 8, b"short", bytes(8)), headers={"Content-Type": PROTOBUF}
        )

        partial = ExportTraceServiceResponse.FromString(await answer.read()).partial_success
        assert (answer.status, partial.rejected_spans) == (200, 2)
        assert "wrong length" in partial.error_message
        assert (receiver.spans, receiver.spans_refused) == (1, 2)


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"\xff\xff\xff", {"Content-Type": PROTOBUF}, 400),
        (b"not gzip", {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"x" * 100, mtime=0)[:-4], {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"", mtime=0) + b"more", {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"", mtime=0) * 2 + b"\x1f", {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}, 400),
        (b"", {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}, 400),
        (b"", {"Content-Type": PROTOBUF, "Content-Encoding": "br"}, 400),
        (b"{}", {"Content-Type": "application/json"}, 415),
    ],
)
async def test_a_body_that_is_no_request_is_refused_and_counted(
    tmp_path: Path, data: bytes, headers: dict[str, str], status: int
) -> None:
    """A refused body is missing evidence, so it must not go unnoticed; the receiver lives on."""
    async with exporter(tmp_path / "spans.otlp") as (receiver, session):
        refused = await session.post("/v1/traces", data=data, headers=headers)
        assert refused.status == status
        assert receiver.bodies_refused == 1

        assert (await session.post("/v1/traces", data=body(b"a" * 8), headers={"Content-Type": PROTOBUF})).status == 200
        assert receiver.bodies == 1


async def test_every_member_of_a_gzip_body_is_kept(tmp_path: Path) -> None:
    """Two protobuf messages in a row are one with the spans of both; what is acknowledged is both."""
    async with exporter(tmp_path / "spans.otlp") as (receiver, session):
        answer = await session.post(
            "/v1/traces",
            data=gzip.compress(body(b"a" * 8)) + gzip.compress(body(b"b" * 8)),
            headers={"Content-Type": PROTOBUF, "Content-Encoding": "gzip"},
        )

        assert answer.status == 200
        assert received(receiver) == [b"a" * 8, b"b" * 8]


@pytest.mark.parametrize("fitting_bytes", [0, 3, 10])
async def test_a_body_that_the_disk_does_not_take_leaves_no_half_a_frame(tmp_path: Path, fitting_bytes: int) -> None:
    """It is refused and counted, and what comes before and after it can be read. The full disk is a file size limit."""
    headers = {"Content-Type": PROTOBUF}
    path = tmp_path / "spans.otlp"
    async with exporter(path) as (receiver, session):
        assert (await session.post("/v1/traces", data=body(b"a" * 8), headers=headers)).status == 200

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + fitting_bytes, hard))
        try:
            refused = await session.post("/v1/traces", data=body(b"b" * 8), headers=headers)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refused.status == 503
        assert "cannot be kept" in await refused.text()
        assert (receiver.bodies, receiver.bodies_refused) == (1, 1)

        assert (await session.post("/v1/traces", data=body(b"c" * 8), headers=headers)).status == 200
        assert received(receiver) == [b"a" * 8, b"c" * 8]


async def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    """1 GiB of zeros is 1 MB of gzip; it is cut off at the bound."""
    bomb = gzip.compress(bytes(1 << 28), compresslevel=9)
    async with exporter(tmp_path / "spans.otlp") as (receiver, session):
        answer = await session.post(
            "/v1/traces", data=bomb, headers={"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}
        )

        assert answer.status == 400
        assert "larger than" in await answer.text()
        assert receiver.bodies_refused == 1


async def test_a_taken_port_is_one_clear_sentence(tmp_path: Path) -> None:
    """Two receivers cannot share an address."""
    async with receiving(tmp_path / "a", host="127.0.0.1", port=0) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(EnvironmentFailedError, match=f"127.0.0.1:{port}"):
            async with receiving(tmp_path / "b", host="127.0.0.1", port=port):
                raise AssertionError("a taken port was given out twice")
