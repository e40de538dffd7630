"""Another version of a service, as the broker sees it: somebody who publishes events that ours did not make.

The only module of this folder that imports `nats`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.js import JetStreamContext

    from harness.environment.nats.access import BrokerAccess
    from harness.records import Operation

PUBLISH_WITHIN_S = 5.0


class Producer:
    """Publishes bytes, and returns when the stream has them."""

    def __init__(self, stream: JetStreamContext) -> None:
        """Publish through this context."""
        self._stream = stream

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str, caused_by: Operation | None = None
    ) -> int:
        """Return the sequence under which the message is stored. caused_by: the operation whose trace it belongs to."""
        headers = {"Nats-Msg-Id": message_id}
        if caused_by is not None:
            headers["traceparent"] = f"00-{caused_by.trace_id}-{caused_by.span_id:016x}-01"
        ack = await self._stream.publish(subject, payload, timeout=PUBLISH_WITHIN_S, headers=headers)
        return ack.seq


@asynccontextmanager
async def producer(access: BrokerAccess) -> AsyncIterator[Producer]:
    """Connect for the scope, past every proxy."""
    client = await nats.connect(
        list(access.urls),
        user=access.user,
        password=access.password,
        tls=access.tls_context(),
        max_reconnect_attempts=3,
    )
    try:
        yield Producer(client.jetstream())
    finally:
        await client.close()
