"""nats-py, made ready for this system. This is the only module that imports `nats`.

What nats-py does here: shake hands, TLS, log in, ping, reconnect and subscribe anew, requests. What it does not: take
apart what arrives for our receivers, or write what we publish and answer; that is `wire.py`'s. It is imported without
aiohttp, which it wants for websocket URLs only, and gets a transport that a partition cannot hold. Everything else
about the connection is in `connection.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from system.jetstream.wire import FrameReader, Receiver, WireError


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
    from nats.protocol.parser import Parser

if TYPE_CHECKING:
    import ssl
    from urllib.parse import ParseResult

__all__ = ["Client", "NatsClient", "NoTlsError", "Server", "Subscription", "errors"]

READ_MAX_BYTES = 256 * 1024
"""nats-py reads 32 KiB at a time, which is less than what arrives together when there is much to do."""


class NoTlsError(errors.Error):
    """The server does not offer the TLS that is demanded of it."""


class NatsClient(Client):
    """A nats-py client that reads and writes frames our way; not connected yet.

    must_be_tls: whether a connection without TLS is refused, before anything is told to the server. on_lost: told at
    once when a connection is lost; nats-py's own callback comes after it has waited for the connection to close.
    """

    def __init__(self, *, must_be_tls: bool, on_lost: Callable[[NatsClient], None]) -> None:
        super().__init__()
        self._must_be_tls = must_be_tls
        self._on_lost = on_lost
        self._prompt = _PromptTransport()
        self._transport = self._prompt
        self._frames = FrameReader()
        self._ps = _FrameParser(self, self._frames)

    async def listen(self, subject: str, receiver: Receiver) -> Subscription:
        """Pass every message on `subject` to `receiver`, across reconnects."""
        subscription = await self.subscribe(subject, cb=_nobody)
        self._frames.receivers[str(subscription._id).encode()] = receiver  # noqa: SLF001 - it has no public name
        return subscription

    async def end(self, subscription: Subscription) -> None:
        """End a subscription, after what the server had sent for it was received."""
        await subscription.drain()  # type: ignore[no-untyped-call]
        self._frames.receivers.pop(str(subscription._id).encode(), None)  # noqa: SLF001 - as above

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not left the process."""
        return self._prompt.unsent_bytes

    def write(self, data: bytes) -> bool:
        """Write frames to the server; False if there is none, and nothing was written."""
        # Between two connections the transport may be one that has not said CONNECT yet.
        if not self.is_connected or self._prompt.is_closing:
            return False
        self._prompt.write(data)  # type: ignore[no-untyped-call]
        return True

    async def _process_op_err(self, e: Exception) -> None:
        self._on_lost(self)
        await super()._process_op_err(e)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 - nats-py's
        # nats-py encrypts when the server demands it, and says nothing when it does not. What it changes to TLS is
        # decided from this very dict, after this.
        if initial_connection and self._must_be_tls:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise NoTlsError("the server offers no TLS")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class _FrameParser(Parser):
    """nats-py's parser, which gets to see only what is not for a receiver of ours."""

    def __init__(self, client: NatsClient, frames: FrameReader) -> None:
        self._frames = frames
        super().__init__(client)

    def reset(self) -> None:
        self._frames.reset()
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        try:
            others = self._frames.feed(data)
        except WireError as error:
            raise errors.ProtocolError(str(error)) from None
        if others:
            await super().parse(others)


class _PromptTransport(TcpTransport):
    """nats-py's TCP transport, but a connection that takes no more bytes is closed without waiting for it to take them.

    nats-py waits for the old connection to close before it makes a new one; asyncio closes only once what is buffered
    was sent, and TLS only once the other side agreed, which in a partition is never. Nothing is lost: what was not
    acknowledged is sent again. And where a handshake got no answer, nats-py forgets the connection without closing it:
    `connect` does so first.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_tls = False
        self._is_aborted = False

    def __bool__(self) -> bool:
        # nats-py would replace a transport that says it is not connected by one of its own kind.
        return True

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not left the process."""
        # A TLS transport that is closed cannot even be asked.
        return 0 if self._io_writer is None or self.is_closing else self._io_writer.transport.get_write_buffer_size()

    @property
    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._io_writer is None or self._io_writer.transport.is_closing()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect anew."""
        self.close()
        self._is_tls = self._is_aborted = False
        await super().connect(uri, max(buffer_size, READ_MAX_BYTES), connect_timeout)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Encrypt what is connected."""
        self._is_tls = True
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)

    async def readline(self) -> bytes:
        """One line of the handshake."""
        while True:
            line: bytes = await super().readline()  # type: ignore[no-untyped-call]
            if not line:
                raise ConnectionResetError("the server closed the connection before it let us in")
            if not line.startswith(b"PING"):
                return line
            # The server may ping between our CONNECT and its PONG, and nats-py would take that for a failure.
            self.write(b"PONG\r\n")  # type: ignore[no-untyped-call]

    async def read(self, buffer_size: int) -> bytes:
        """What arrived, and waits for it if there is nothing."""
        data: bytes = await super().read(max(buffer_size, READ_MAX_BYTES))
        return data

    def close(self) -> None:
        """Close at once what cannot be flushed."""
        if self._io_writer is not None and (self._is_tls or self.unsent_bytes > 0):
            self._is_aborted = True
            # Python before 3.11.4 cannot abort a TLS connection that is gone already.
            with contextlib.suppress(AttributeError):
                self._io_writer.transport.abort()
        super().close()  # type: ignore[no-untyped-call]

    async def wait_closed(self) -> None:
        """Wait for what was not closed at once; where a TLS handshake failed, there is nobody to wait for."""
        if not self._is_aborted:
            await super().wait_closed()  # type: ignore[no-untyped-call]


async def _nobody(message: Msg) -> None:
    """Takes the messages of a subscription whose frames our reader keeps from nats-py: none ever comes."""
