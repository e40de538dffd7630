"""One delivery of a message: what it carries, where it comes from, and how to answer it.

Promises: an answer is sent at most once per delivery object, and waits, bounded, for a lost connection to come back; if
it does not, the answer is dropped, which is safe: the broker delivers again. A plain ack may be lost on the way, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import msgspec

from system.jetstream.connection import Connection, Message, NotConnectedError

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 5.0

_ACK_TOKENS = 9
_ACK_TOKENS_WITH_DOMAIN = 11


class Delivery:
    """A message handed over once.

    times_delivered: 1 for the first time. stream, sequence: where the message is stored. headers: as published.
    """

    __slots__ = (
        "_connection",
        "_reply",
        "consumer",
        "headers",
        "is_answered",
        "payload",
        "sequence",
        "signalled_at_s",
        "stream",
        "subject",
        "times_delivered",
    )

    def __init__(self, connection: Connection, message: Message) -> None:
        tokens = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, and with a domain two
        # more tokens before the stream (and perhaps more at the end).
        if len(tokens) >= _ACK_TOKENS_WITH_DOMAIN:
            del tokens[2:4]
        if len(tokens) < _ACK_TOKENS or tokens[:2] != ["$JS", "ACK"]:
            raise ValueError(f"{message.reply!r} is not the reply subject of a JetStream delivery")
        self._connection = connection
        self._reply = message.reply
        self.subject = message.subject
        self.payload = message.payload
        self.headers: Mapping[str, str] = message.headers
        self.stream = tokens[2]
        self.consumer = tokens[3]
        self.times_delivered = int(tokens[4])
        self.sequence = int(tokens[5])
        self.is_answered = False
        self.signalled_at_s = time.monotonic()

    async def ack(self) -> None:
        """The work is done: never deliver this message again."""
        await self._answer(b"+ACK")

    async def nak(self, delay_s: float) -> None:
        """The work is not done: deliver again after `delay_s`. There is no nak without a delay: it would be a storm."""
        await self._answer(b"-NAK " + msgspec.json.encode({"delay": int(delay_s * 1e9)}))

    async def term(self, reason: str) -> None:
        """The work can never be done: do not deliver again."""
        await self._answer(b"+TERM " + reason.replace("\r", " ").replace("\n", " ").encode())

    async def in_progress(self) -> None:
        """The work goes on: start the broker's AckWait anew. Dropped when there is no connection."""
        if self.is_answered:
            return
        self.signalled_at_s = time.monotonic()
        try:
            await self._connection.send(self._reply, b"+WPI")
        except NotConnectedError:
            log.debug("no connection for an in-progress signal")

    async def _answer(self, answer: bytes) -> None:
        if self.is_answered:
            return
        self.is_answered = True
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._connection.wait_connected()
                await self._connection.send(self._reply, answer)
        except (TimeoutError, NotConnectedError):
            log.info(
                "%s of message %d of %s was not sent: no connection",
                answer.split()[0].decode(),
                self.sequence,
                self.stream,
            )
