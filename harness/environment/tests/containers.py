"""What tests of containers share: the real engine or a skip by name, the real images, an engine that can be cut off.

Not a test itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from harness.environment.containers.docker_socket import DockerSocket
from harness.environment.containers.image_build import build_image, nats_recipe
from harness.environment.containers.images import look_for_image, nats_image
from harness.environment.nats.server import find_nats_server
from harness.environment.probes import Probe, probe_nats
from harness.environment.processes.guardian import OWNER_LABEL
from harness.environment.processes.supervised import Command

CHUNK_BYTES = 64 * 1024


async def nats_here(docker: DockerSocket) -> str:
    """Return the tag of the pinned broker's image, built from this host's binary unless it is there."""
    recipe = await nats_recipe(find_nats_server())
    if await look_for_image(docker, recipe.tag) is None:
        await build_image(docker, recipe)
    assert recipe.tag == nats_image(recipe.version)
    return recipe.tag


def nats_command(
    name: str, address: str, *, image: str, directory: Path, options: tuple[str, ...] = ("--jetstream",)
) -> Command:
    """Return a broker that is told everything in its arguments. directory: where its log lies.

    Unless told otherwise its store is in the container's own /tmp.
    """
    host, _, port = address.rpartition(":")
    return Command(
        name=name,
        argv=("nats-server", "--addr", host, "--port", port, *options),
        environment={"PATH": "/nowhere", "HOME": "/nowhere"},
        log_path=directory / f"{name}.log",
        stop_grace_s=5.0,
        image=image,
    )


def serves(address: str) -> Probe:
    """Return a probe of a broker with JetStream."""
    return lambda: probe_nats(address)


def owned(docker: DockerSocket, owner_label: str) -> list[str]:
    """Return the names of all containers of one run."""
    return sorted(container.name for container in docker.containers(OWNER_LABEL, owner_label))


class CutEngine:
    """A way to the real engine that can be cut off, as when Docker is stopped midway, and given back."""

    def __init__(self, socket: Path, engine: Path) -> None:
        """socket: where it listens. engine: the real one's."""
        self.socket = socket
        self._engine = engine
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """As DOCKER_HOST has it."""
        return f"unix://{self.socket}"

    async def open(self) -> None:
        """Let calls through."""
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def cut(self) -> None:
        """Break off all calls and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self.socket.unlink(missing_ok=True)
            for writer in tuple(self._writers):
                writer.transport.abort()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            onward_reader, onward_writer = await asyncio.open_unix_connection(str(self._engine))
            self._writers |= {writer, onward_writer}
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pour(reader, onward_writer))
                    group.create_task(_pour(onward_reader, writer))
            finally:
                self._writers -= {writer, onward_writer}
                writer.transport.abort()
                onward_writer.transport.abort()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@contextlib.asynccontextmanager
async def unix_server(socket: Path, answer: bytes | None) -> AsyncIterator[None]:
    """Serve a socket that says this to whatever it is asked; None for an engine that hangs."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await gone.wait()
        else:
            writer.write(answer)
            await writer.drain()
        writer.transport.abort() if answer is None else writer.close()

    server = await asyncio.start_unix_server(serve, socket)
    try:
        yield
    finally:
        gone.set()
        server.close()
