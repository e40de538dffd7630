"""nats-py, made ready for this system. This is the only module that imports `nats`.

It imports it without aiohttp, which nats-py wants for websocket URLs only, and gives its client a transport that a
partition cannot hold. Everything else about the connection is in `connection.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING


@contextlib.contextmanager
def _pretend_absent(module: str) -> Iterator[None]:
    """Make `import module` fail within the block, unless it is already there.

    Importing aiohttp takes 150 of the 270 ms that `import nats` takes, and start time matters. `None` in sys.modules
    is how Python spells "not installed".
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _pretend_absent("aiohttp"):
    from nats import errors
    from nats.aio.client import Client, Server
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.aio.transport import TcpTransport

if TYPE_CHECKING:
    from urllib.parse import ParseResult

__all__ = ["Client", "Msg", "Server", "Subscription", "errors", "new_client"]


def new_client() -> Client:
    """A client that is not connected yet."""
    client = Client()
    client._transport = _PromptTransport()  # type: ignore[no-untyped-call]  # noqa: SLF001 - no public way to choose it
    return client


class _PromptTransport(TcpTransport):
    """nats-py's TCP transport, but a connection that takes no more bytes is closed without waiting for it to take them.

    nats-py waits for the old connection to close before it makes a new one; asyncio closes only once what is buffered
    was sent, which in a partition is never. Nothing is lost: what was not acknowledged is sent again. And where a
    handshake got no answer, nats-py forgets the connection without closing it: `connect` does so first.
    """

    def __bool__(self) -> bool:
        # nats-py would replace a transport that says it is not connected by one of its own kind.
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect anew."""
        self.close()
        await super().connect(uri, buffer_size, connect_timeout)

    def close(self) -> None:
        """Close at once what cannot be flushed."""
        writer = self._io_writer
        if writer is not None and writer.transport.get_write_buffer_size() > 0:
            writer.transport.abort()
        super().close()  # type: ignore[no-untyped-call]
