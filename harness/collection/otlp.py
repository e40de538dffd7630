"""The OTLP/HTTP receiver: takes traces from any system, in any language.

`POST /v1/traces` with `application/x-protobuf`, plain or gzip. A body is appended to `spans.otlp` in the run directory
before it is acknowledged, so what a client was told is received survives the harness. Answers are OTLP's own: 200 with
an ExportTraceServiceResponse (partial success when spans had impossible ids), 400 for bytes that are no request, 413
and 415, 503 when the disk does not take it. Every refusal is counted, because a refused body is missing evidence.

The file holds frames of a little-endian uint32 length and one uncompressed ExportTraceServiceRequest each.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import struct
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from harness.collection.spans import invalid_spans, parse
from harness.errors import EnvironmentFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FILE_NAME = "spans.otlp"
PROTOBUF = "application/x-protobuf"
BODY_BYTES_MAX = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class OtlpReceiver:
    """Counts and keeps what arrives. Not thread-safe: it lives on one event loop."""

    def __init__(self, path: Path) -> None:
        """Keep bodies in the file at `path`."""
        self._path = path
        self._file = path.open("ab", buffering=0)
        self.url = ""
        self.bodies = 0
        self.spans = 0
        self.bodies_refused = 0
        self.spans_refused = 0

    def application(self) -> web.Application:
        """Return the web application, for a server of the caller's."""
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_post("/v1/traces", self._traces)
        return application

    def requests(self) -> Iterator[ExportTraceServiceRequest]:
        """Yield everything received so far, read back from the file."""
        content = self._path.read_bytes()
        offset = 0
        while offset + _LENGTH.size <= len(content):
            (length,) = _LENGTH.unpack_from(content, offset)
            offset += _LENGTH.size
            if offset + length > len(content):
                return
            yield parse(content[offset : offset + length])
            offset += length

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    async def _traces(self, request: web.Request) -> web.Response:
        media_type = request.content_type
        if media_type != PROTOBUF:
            return self._refuse(415, f"Content-Type {media_type!r} is not understood: send {PROTOBUF}")
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(413, f"the body is larger than {BODY_BYTES_MAX} bytes: send smaller batches")
        try:
            body = _decompressed(body, encoding)
            message = parse(body)
        except ValueError as error:
            return self._refuse(400, str(error))
        refused = invalid_spans(message)
        spans = sum(len(scope.spans) for resource in message.resource_spans for scope in resource.scope_spans)
        try:
            self._keep(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            return self._refuse(503, f"the body cannot be kept ({error.strerror}): send it again later")
        self.bodies += 1
        self.spans += spans - refused
        self.spans_refused += refused
        response = ExportTraceServiceResponse()
        if refused:
            response.partial_success.rejected_spans = refused
            response.partial_success.error_message = (
                f"{refused} spans have a trace or span id of the wrong length or zero"
            )
        return web.Response(body=response.SerializeToString(), content_type=PROTOBUF)

    def _keep(self, frame: bytes) -> None:
        """Append a frame whole or not at all: after half a one, none of the later ones could be read."""
        end = self._file.seek(0, os.SEEK_END)
        # Unbuffered: a full disk takes what fits and says how much that was.
        written = self._file.write(frame)
        if written != len(frame):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, f"{written} of {len(frame)} bytes fitted into {self._path}")

    def _refuse(self, status: int, why: str) -> web.Response:
        self.bodies_refused += 1
        return web.Response(status=status, text=why + "\n")


@asynccontextmanager
async def receiving(path: Path, *, host: str, port: int) -> AsyncIterator[OtlpReceiver]:
    """Serve a receiver on `host:port` for the scope; port 0 takes a free one, `receiver.url` says which.

    Raises EnvironmentFailedError when the port is taken.
    """
    receiver = OtlpReceiver(path)
    # The receiver undoes gzip itself: aiohttp would answer a broken stream without our count of it.
    runner = web.AppRunner(
        receiver.application(), access_log=None, auto_decompress=False, handle_signals=False, shutdown_timeout=1.0
    )
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise EnvironmentFailedError(
                f"the OTLP receiver cannot listen on {host}:{port} ({error.strerror}): free the port or choose another"
            ) from error
        bound = runner.addresses[0]
        receiver.url = f"http://{bound[0]}:{bound[1]}"
        yield receiver
    finally:
        await runner.cleanup()
        receiver.close()


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise ValueError(f"Content-Encoding {encoding!r} is not understood: send gzip or none")
    if not body:
        raise ValueError("the gzip body is empty")
    try:
        # A gzip stream may have several members; whatever follows the last one is refused.
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as members:
            plain = members.read(BODY_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the body is not whole gzip: {error}") from error
    if len(plain) > BODY_BYTES_MAX:
        raise ValueError(f"the body is larger than {BODY_BYTES_MAX} bytes once unpacked: send smaller batches")
    return plain
