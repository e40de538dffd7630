"""Orders answers 202 as soon as the event is written to the socket, without waiting for the broker's PubAck.

What was written into a dead connection is gone, and the customer was promised an order.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from system.jetstream import PubAck, Publisher

TARGET = "orders"
EXPERIMENT = "orders-partition"
EXPECTED = ("I1",)


def plant() -> None:
    """Send, and take it for stored."""
    from system.jetstream import NotConnectedError
    from system.jetstream import PubAck as Ack
    from system.jetstream import Publisher as Planted

    async def publish(
        self: Publisher, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str], deadline_s: float
    ) -> PubAck:
        del deadline_s
        with contextlib.suppress(NotConnectedError):
            await self._connection.send(subject, payload, headers={**headers, "Nats-Msg-Id": message_id})
        return Ack(stream="ORDERS", sequence=0, duplicate=False)

    Planted.publish = publish  # type: ignore[method-assign]  # planting is what this file is for
