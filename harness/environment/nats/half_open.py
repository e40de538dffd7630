"""Closes what nats-py forgets: a connection that broke in its handshake while the client was on its way back.

nats-py 2.16 then tries the next server and drops the connection before, open; it is closed when the garbage collector
finds it, which a run under `-W error` takes for a leak of the test's.
"""

from __future__ import annotations

from typing import Any, Protocol


class _Client(Protocol):
    _transport: Any  # nats-py's own, or None

    @property
    def is_connected(self) -> bool:
        """Whether it is being served; not on its way to a server, or back to one."""


def hang_up(client: _Client) -> None:
    """Call it from the client's error callback, which is told of every attempt that failed."""
    transport = client._transport  # noqa: SLF001 - it has no public name
    if not client.is_connected and transport is not None:
        transport.close()
