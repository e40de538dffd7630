"""A server for tests of HTTP: it answers with what it was asked, when the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from system.settings import Address
from system.tests.parts import free_port
from system.web import Handler, Request, Response, Server


class Echo:
    """Answers with what it was asked, after `gate` opened."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: Request) -> Response:
        """Answer once the gate is open."""
        self.seen.append(request)
        await self.gate.wait()
        if request.path == "/broken":
            raise RuntimeError("as the test wants it")
        return Response(status=200, body=request.path.encode() + request.body)


@asynccontextmanager
async def serving(handler: Handler, *, body_max_bytes: int = 1000) -> AsyncIterator[tuple[Server, int]]:
    """A server within the block, and its port."""
    port = free_port()
    async with Server(Address(host="127.0.0.1", port=port), handler, body_max_bytes=body_max_bytes) as server:
        yield server, port
