"""Clients of the real brokers under test: let in, published to until it is acknowledged, and what is stored then.

Not a test itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from harness.environment.nats.access import BrokerAccess
from harness.environment.nats.half_open import hang_up

STREAM = "ORDERS"
SUBJECT = "orders.created"
PUBLISHED_WITHIN_S = 30.0
ANSWER_WITHIN_S = 1.0
_REFUSED_PAUSE_S = 0.05
"""A publish is refused at once while a stream has no leader."""


@asynccontextmanager
async def let_in(access: BrokerAccess, *, dont_randomize: bool = False) -> AsyncIterator[Client]:
    """A client that finds its way back by itself, silently: what is lost here is lost on purpose.

    dont_randomize: the first server is the one that it asks first.
    """
    client = Client()

    async def on_error(_error: Exception) -> None:
        hang_up(client)

    await client.connect(
        list(access.urls),
        user=access.user,
        password=access.password,
        tls=access.tls_context(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,  # type: ignore[arg-type]  # annotated as whole seconds, and slept as it is
        ping_interval=1,
        dont_randomize=dont_randomize,
        error_cb=on_error,
    )
    try:
        yield client
    finally:
        await client.close()


async def published(
    jetstream: JetStreamContext,
    text: str,
    *,
    within_s: float = PUBLISHED_WITHIN_S,
    answer_within_s: float = ANSWER_WITHIN_S,
) -> str:
    """Publish as a service does, again and again under one message id, until a stream has it; the stream's name.

    Raises TimeoutError when none has it in time.
    """
    async with asyncio.timeout(within_s):
        while True:
            try:
                ack = await jetstream.publish(
                    SUBJECT, text.encode(), timeout=ANSWER_WITHIN_S, headers={"Nats-Msg-Id": text}
                )
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(_REFUSED_PAUSE_S)
            else:
                return ack.stream


async def stored(client: Client) -> list[str]:
    """What the stream holds, in order."""
    stream = client.jetstream(timeout=10)
    state = (await stream.stream_info(STREAM)).state
    messages = [await stream.get_msg(STREAM, number) for number in range(state.first_seq, state.last_seq + 1)]
    return [(message.data or b"").decode() for message in messages]
