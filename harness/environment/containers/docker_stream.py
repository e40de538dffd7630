"""Calls of the Docker engine that go on telling for a while: a container's log, a pull, a build.

Promises: nothing is read faster than the caller takes it; leaving the scope ends the call, also on cancellation, so
that Ctrl-C does not wait for a pull of minutes (which is why these are not threads with `docker_socket`).

Does not: bound itself: the caller's scope does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlencode

from harness.environment.containers.docker_socket import DockerError

LINE_BYTES_MAX = 1024 * 1024
SEND_BYTES = 256 * 1024
_FRAME_HEAD_BYTES = 8


@asynccontextmanager
async def open_stream(
    socket: Path, method: str, path: str, query: Mapping[str, str], *, body: IO[bytes] | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """Begin a call and yield what reads its answer. body: a file that stands at its beginning, a tar archive.

    Raises DockerError when the engine cannot be reached, refuses, or breaks off.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_BYTES_MAX)
        try:
            await _send(writer, method, f"{path}?{urlencode(query)}", body)
            await _read_head(reader, socket)
            yield reader
        finally:
            writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise DockerError(f"unix://{socket} broke off {method} {path}: {error}") from error


async def told_by(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, object]]:
    """Each line of a pull or a build, as it comes. Raises DockerError for one that says what went wrong.

    An end is no proof of success: an engine that dies ends its answer as well.
    """
    while line := await _line(reader):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
        except ValueError:
            raise DockerError(f"the engine told what is not JSON: {line[:100]!r}") from None
        if "error" in told:
            raise DockerError(str(told["error"]).strip())
        yield told


async def follow_log(socket: Path, container: str, log: IO[bytes]) -> None:
    """Append both outputs of a container to a file, from its first byte until it has ended and all is written."""
    query = {"follow": "1", "stdout": "1", "stderr": "1"}
    async with open_stream(socket, "GET", f"/containers/{container}/logs", query) as reader:
        while head := await reader.read(1):
            head += await reader.readexactly(_FRAME_HEAD_BYTES - 1)
            log.write(await reader.readexactly(int.from_bytes(head[4:], "big")))
            log.flush()


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ConnectionResetError:
        return b""  # how a Unix socket ends whose other side left some of the archive's padding unread


async def _send(writer: asyncio.StreamWriter, method: str, target: str, body: IO[bytes] | None) -> None:
    # HTTP/1.0, so that the answer is plain bytes until the connection closes, not chunks.
    head = [f"{method} {target} HTTP/1.0", "Host: docker"]
    if body is not None:
        size = body.seek(0, 2)
        body.seek(0)
        head += ["Content-Type: application/x-tar", f"Content-Length: {size}"]
    writer.write("\r\n".join([*head, "", ""]).encode())
    while body is not None and (some := body.read(SEND_BYTES)):
        writer.write(some)
        await writer.drain()
    await writer.drain()


async def _read_head(reader: asyncio.StreamReader, socket: Path) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = head.split(" ", 2)[1]
    if status == "200":
        return
    content = (await reader.read(LINE_BYTES_MAX)).decode("utf-8", "replace").strip()
    try:
        words = str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        words = content[:200]
    raise DockerError(f"unix://{socket}: {words}", status=int(status))
