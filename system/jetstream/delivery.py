"""One delivery of a message: what it carries, where it comes from, and how to answer it.

Promises: an answer is sent at most once per delivery object. It never waits: it leaves with whatever else is sent
within a tick, or, without a connection, with the next one if that comes within `ANSWER_WITHIN_S`; if it does not, the
answer is dropped, which is safe: the broker delivers again. A plain ack may be lost on the way, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from system.jetstream.connection import Connection
from system.jetstream.errors import NotConnectedError
from system.jetstream.wire import Message, answer_frame

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 5.0

_ACK_TOKENS = 9
_ACK_TOKENS_WITH_DOMAIN = 11


class Delivery:
    """A message handed over once.

    times_delivered: 1 for the first time. stream, sequence: where the message is stored. on_answered: told once, when
    the delivery has its answer.
    """

    __slots__ = (
        "_connection",
        "_message",
        "_on_answered",
        "_reply",
        "_stored_text",
        "arrived_at_s",
        "consumer",
        "is_answered",
        "payload",
        "sequence",
        "signalled_at_s",
        "stream",
        "subject",
        "times_delivered",
    )

    def __init__(
        self,
        connection: Connection,
        message: Message,
        *,
        on_answered: Callable[[Delivery], None] | None = None,
    ) -> None:
        tokens = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, and with a domain two
        # more tokens before the stream (and perhaps more at the end).
        if len(tokens) >= _ACK_TOKENS_WITH_DOMAIN:
            del tokens[2:4]
        if len(tokens) < _ACK_TOKENS or tokens[:2] != ["$JS", "ACK"]:
            raise ValueError(f"{message.reply!r} is not the reply subject of a JetStream delivery")
        self._connection = connection
        self._reply = message.reply
        self._message = message
        self._on_answered = on_answered
        self.subject = message.subject
        self.payload = message.payload
        self.stream = tokens[2]
        self.consumer = tokens[3]
        self.times_delivered = int(tokens[4])
        self.sequence = int(tokens[5])
        self._stored_text = tokens[7]
        self.is_answered = False
        self.arrived_at_s = self.signalled_at_s = time.monotonic()

    @property
    def stored_ns(self) -> int:
        """When the broker stored the message, Unix time; it differs where a stream was made anew."""
        return int(self._stored_text)

    @property
    def headers(self) -> Mapping[str, str]:
        """As published."""
        return self._message.headers

    async def ack(self) -> None:
        """The work is done: never deliver this message again."""
        self._answer(b"+ACK")

    async def nak(self, delay_s: float) -> None:
        """The work is not done: deliver again after `delay_s`. There is no nak without a delay: it would be a storm."""
        self._answer(b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    async def term(self, reason: str) -> None:
        """The work can never be done: do not deliver again."""
        self._answer(b"+TERM " + reason.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace"))

    def give_back(self, delay_s: float) -> None:
        """`nak`, for those who cannot wait."""
        self._answer(b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    def signal_progress(self) -> None:
        """The work goes on: start the broker's AckWait anew. Dropped when there is no connection."""
        if self.is_answered:
            return
        self.signalled_at_s = time.monotonic()
        try:
            self._connection.post(answer_frame(self._reply, b"+WPI"))
        except NotConnectedError:
            log.debug("no connection for an in-progress signal")

    def _answer(self, answer: bytes) -> None:
        if self.is_answered:
            return
        self.is_answered = True
        self._connection.post_or_keep(answer_frame(self._reply, answer), within_s=ANSWER_WITHIN_S)
        if self._on_answered is not None:
            self._on_answered(self)
