"""The stream of dead letters: read, replayed and emptied one by one.

Promises: a dead letter is removed only once the stream of its message has the replay (`replay`), or because somebody
said so (`remove`). Killed between the two, `replay` finds the dead letter again; the replay it stores then has the
same Nats-Msg-Id, so that the stream keeps one of them, if both fall into its dedup window; and so have those of the
dead letters that several consumers made of one message. Beyond that it keeps both, and whoever handles them must find
the work done: consumers here do, since any delivery may come twice.

Does not: promise order, or that a replay is handled this time. It dies again under a number of its own.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import msgspec

from system import topology
from system.deadletters.letter import SUBJECT_PREFIX, DeadLetter, NoDeadLetterError, Stray, letter_in
from system.jetstream import Connection, PubAck, Publisher, RequestError
from system.jetstream.wire import headers_in

API_WITHIN_S = 5.0
REPLAY_WITHIN_S = 10.0

_NAME = topology.DEAD_LETTERS.name
_NO_MESSAGE = frozenset({10037, 10043})
_NO_STREAM = 10059


class ReplayError(Exception):
    """A replay was not carried out to its end, and the dead letter stays; the message says what is stored by now."""


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Stored(msgspec.Struct):
    subject: str
    seq: int
    hdrs: str = ""
    data: str = ""


class _State(msgspec.Struct):
    messages: int
    last_seq: int


class _Reply(msgspec.Struct):
    error: _Error | None = None
    message: _Stored | None = None
    state: _State | None = None


class DeadLetterStream:
    """What `python -m system.deadletters` works on."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def count(self) -> int:
        """How many there are; none if the stream was never made."""
        state = await self._state()
        return state.messages

    async def letters(self) -> AsyncIterator[DeadLetter | Stray]:
        """Those that were there at the first step, oldest first."""
        last = (await self._state()).last_seq
        number = 1
        while number <= last:
            stored = await self._get(_NAME, {"seq": number, "next_by_subj": f"{SUBJECT_PREFIX}>"})
            if stored is None or stored.seq > last:
                return
            try:
                yield await self._letter(stored)
            except NoDeadLetterError as error:
                yield Stray(number=stored.seq, why=str(error))
            number = stored.seq + 1

    async def letter(self, number: int) -> DeadLetter:
        """The one with this number; `NoDeadLetterError` if there is none."""
        stored = await self._get(_NAME, {"seq": number})
        if stored is None:
            raise NoDeadLetterError(f"there is no dead letter {number}")
        return await self._letter(stored)

    async def replay(self, letter: DeadLetter) -> PubAck:
        """Publish its message again and then remove it; `ReplayError`, or an error of `Publisher.publish`, if not."""
        death = letter.death
        if letter.payload is None:
            raise ReplayError(
                f"its message was left behind in {death.stream} at {death.sequence}, and is gone from there"
            )
        ack = await self._publisher.publish(
            death.subject,
            letter.payload,
            message_id=letter.replay_id,
            headers=letter.original_headers,
            deadline_s=REPLAY_WITHIN_S,
        )
        if ack.stream != death.stream:
            raise ReplayError(
                f"it was published, but {death.subject} is stored in {ack.stream} now (at {ack.sequence}) "
                f"and was in {death.stream}: drop it once you know that this is right"
            )
        try:
            await self.remove(letter.number)
        except RequestError as error:
            raise ReplayError(
                f"it is stored as {ack.sequence} of {ack.stream}, but could not be removed: {error}; "
                f"replayed again within {topology.DEDUP_WINDOW_S:g} s it will not be stored twice"
            ) from None
        return ack

    async def remove(self, number: int) -> bool:
        """The dead letter is gone for ever when this returns. False if it was gone before."""
        reply = await self._ask(f"MSG.DELETE.{_NAME}", {"seq": number, "no_erase": True})
        if reply.error is None:
            return True
        if reply.error.err_code in _NO_MESSAGE:
            return False
        raise RequestError(f"dead letter {number} cannot be removed: {reply.error.description}")

    async def _letter(self, stored: _Stored) -> DeadLetter:
        letter = letter_in(stored.seq, headers_in(base64.b64decode(stored.hdrs)), base64.b64decode(stored.data))
        if not letter.is_left_behind:
            return letter
        original = await self._get(letter.death.stream, {"seq": letter.death.sequence})
        if original is None:
            return letter.with_message({}, None)
        return letter.with_message(headers_in(base64.b64decode(original.hdrs)), base64.b64decode(original.data))

    async def _state(self) -> _State:
        reply = await self._ask(f"INFO.{_NAME}", {})
        if reply.error is not None and reply.error.err_code == _NO_STREAM:
            return _State(messages=0, last_seq=0)
        if reply.error is not None or reply.state is None:
            reason = reply.error.description if reply.error else "an empty answer"
            raise RequestError(f"stream {_NAME} cannot be asked: {reason}")
        return reply.state

    async def _get(self, stream: str, wanted: dict[str, object]) -> _Stored | None:
        reply = await self._ask(f"MSG.GET.{stream}", wanted)
        if reply.error is not None and reply.error.err_code in {*_NO_MESSAGE, _NO_STREAM}:
            return None
        if reply.error is not None or reply.message is None:
            reason = reply.error.description if reply.error else "an empty answer"
            raise RequestError(f"stream {stream} cannot be read: {reason}")
        return reply.message

    async def _ask(self, what: str, wanted: dict[str, object]) -> _Reply:
        subject = f"$JS.API.STREAM.{what}"
        answer = await self._connection.request(subject, msgspec.json.encode(wanted), within_s=API_WITHIN_S)
        try:
            return msgspec.json.decode(answer, type=_Reply)
        except msgspec.DecodeError as error:
            raise RequestError(f"{subject}: the answer makes no sense: {error}") from None
