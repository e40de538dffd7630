"""NATS frames: read in bulk, and written together.

nats-py's own way with a message costs more than everything else that a service does with it: it deletes each frame
from a bytearray, takes its headers apart whether anybody looks at them or not, and passes it through a queue to a
task; and it writes what is sent as soon as it can, which wakes the server once per message. `FrameReader` takes a whole
chunk of bytes apart at once, and `FrameWriter` writes at most once per `TICK_S`. A publish with its ack costs 10
instead of 24 µs so, a delivery with its ack 7 instead of 26 (`python -m system.benchmarks.wire`).

Promises: whatever way the bytes were split, the same messages come out, in their order; frames that are not for a
receiver of ours come out untouched, for nats-py; bytes that are no frames raise `WireError`. What one chunk held for
one receiver is handed over in one call. Frames leave in the order in which they were put.

Does not: know of connections. Nothing here imports nats-py.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Mapping

TICK_S = 0.002
"""Two writes are at least so far apart. The first after a pause leaves at once, so that only a crowd waits.

At 8,000 publishes a second, one by one, with ticks of 0, 1, 2 and 5 ms: 28, 21, 19 and 18 µs of our CPU for each, 20,
17, 15 and 12 µs of the broker's. Beyond 2 ms waiting grows faster than the gain.
"""
LINE_MAX_BYTES = 65536
"""Longer than any control line: the longest is INFO of a large cluster, and who sends more sends no NATS."""
FRAME_MAX_BYTES = 72 * 1024 * 1024
"""Above the largest payload (64 MiB) that a server can be told to allow, with its headers."""

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SUBJECT = re.compile(r"[^\s\x00-\x1f\x7f]+")
_MSG, _HMSG = ord("M"), ord("H")
_MSG_WORDS, _HMSG_WORDS = 4, 5
_CRLF = b"\r\n"


class WireError(Exception):
    """The bytes are no NATS frames; the connection they came over is of no use any more."""


class Message:
    """What arrived for a subscription. headers: taken apart when somebody asks for them.

    No dataclass, because a frozen one takes four times as long to make, and this is made for every message.
    """

    __slots__ = ("_block", "_headers", "payload", "reply", "subject")

    def __init__(self, subject: str, reply: str, payload: bytes, block: bytes = b"") -> None:
        self.subject = subject
        self.reply = reply
        self.payload = payload
        self._block = block
        self._headers: Mapping[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, in the case it was sent in; a status line is `Status` and `Description`."""
        if self._headers is None:
            self._headers = headers_in(self._block)
        return self._headers

    def __repr__(self) -> str:
        return f"Message(subject={self.subject!r}, reply={self.reply!r}, {len(self.payload)} bytes)"


Receiver = Callable[[list[Message]], None]
"""Takes what arrived together; must not raise."""


class FrameReader:
    """Takes apart what one connection receives. receivers: who gets the messages of which subscription id."""

    def __init__(self) -> None:
        self.receivers: dict[bytes, Receiver] = {}
        self._parts: list[bytes] = []
        self._missing_bytes = 0

    def reset(self) -> None:
        """Begin anew, as after a new connection."""
        self._parts.clear()
        self._missing_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Hand over every complete message in it, and return the complete frames that are for nobody here."""
        if self._parts:
            # A frame that is not complete is put together once, when it is, and not again with every part.
            self._parts.append(data)
            self._missing_bytes -= len(data)
            if self._missing_bytes > 0:
                return b""
            data = b"".join(self._parts)
            self.reset()
        arrived: dict[bytes, list[Message]] = {}
        others: list[bytes] = []
        position = self._read(data, arrived, others)
        if position < len(data):
            self._parts.append(data[position:])
        for sid, messages in arrived.items():
            self.receivers[sid](messages)
        return b"".join(others)

    def _read(self, data: bytes, arrived: dict[bytes, list[Message]], others: list[bytes]) -> int:
        """Where the first frame begins that is not complete."""
        position, end = 0, len(data)
        receivers = self.receivers
        while position < end:
            line_end = data.find(_CRLF, position)
            if line_end < 0:
                if end - position > LINE_MAX_BYTES:
                    raise WireError(
                        f"a line of more than {LINE_MAX_BYTES} bytes: {data[position : position + 32]!r}..."
                    )
                self._missing_bytes = 1
                break
            first = data[position]
            if first not in (_MSG, _HMSG):
                others.append(data[position : line_end + 2])
                position = line_end + 2
                continue
            # MSG subject sid [reply] size, HMSG subject sid [reply] header-size size
            words = data[position:line_end].split()
            begin = line_end + 2
            try:
                size = int(words[-1])
                body = begin + int(words[-2]) if first == _HMSG else begin
                sid = words[2]
            except (IndexError, ValueError):
                raise WireError(f"{data[position:line_end]!r} is no message") from None
            after = begin + size + 2
            if not begin <= body <= after - 2 or size > FRAME_MAX_BYTES:
                raise WireError(f"{data[position:line_end]!r} has sizes that cannot be")
            if after > end:
                self._missing_bytes = after - end
                break
            messages = arrived.get(sid)
            if messages is None:
                if sid not in receivers:
                    others.append(data[position:after])
                    position = after
                    continue
                messages = arrived[sid] = []
            has_reply = len(words) > (_HMSG_WORDS if first == _HMSG else _MSG_WORDS)
            messages.append(
                Message(
                    str(words[1], "utf-8", "replace"),
                    str(words[3], "utf-8", "replace") if has_reply else "",
                    data[body : after - 2],
                    data[begin:body],
                )
            )
            position = after
        return position


class FrameWriter:
    """Collects frames and writes them together. write: takes the bytes, all of them, now."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._frames: list[bytes] = []
        self._timer: asyncio.Handle | None = None
        self._not_before_s = 0.0
        self.waiting_bytes = 0

    def put(self, frame: bytes) -> None:
        """Write this soon."""
        self._frames.append(frame)
        self.waiting_bytes += len(frame)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._not_before_s:
                self._timer = loop.call_soon(self.flush)
            else:
                self._timer = loop.call_at(self._not_before_s, self.flush)

    def flush(self) -> None:
        """Write what waits, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._frames:
            data = b"".join(self._frames)
            self._frames.clear()
            self.waiting_bytes = 0
            self._not_before_s = asyncio.get_running_loop().time() + TICK_S
            self._write(data)

    def discard(self) -> None:
        """Forget what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._frames.clear()
        self.waiting_bytes = 0


def publish_frame(subject: str, payload: bytes, *, reply: str = "", block: bytes = b"") -> bytes:
    """The frame that publishes; a subject that is none raises `ValueError`. block: as `header_block` makes it."""
    subject = _checked_subject(subject)
    if block:
        sizes = f"{len(block)} {len(block) + len(payload)}"
        return b"%b%b%b\r\n" % (f"HPUB {subject} {reply} {sizes}\r\n".encode(), block, payload)
    return b"%b%b\r\n" % (f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload)


def answer_frame(reply: str, answer: bytes) -> bytes:
    """The frame that answers a delivery; its subject came from the server, and is another one each time."""
    return b"%b%b\r\n" % (f"PUB {reply} {len(answer)}\r\n".encode(), answer)


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers as they travel; a line break in a value becomes a space, a name that is none raises `ValueError`."""
    lines = "".join([f"{_checked_name(name)}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        return header_block({name: value.replace("\r", " ").replace("\n", " ") for name, value in headers.items()})
    return f"NATS/1.0\r\n{lines}\r\n".encode("utf-8", "replace")


def headers_in(block: bytes) -> dict[str, str]:
    """Headers as they travelled, by name. Lines that are no headers are passed over; the last of a name counts."""
    headers: dict[str, str] = {}
    first, *lines = str(block, "utf-8", "replace").split("\r\n")
    if status := first[8:].strip():  # after "NATS/1.0"
        headers["Status"], _, description = status.partition(" ")
        if description:
            headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name and " " not in name:
            headers[name] = value.strip()
    return headers


@functools.lru_cache(maxsize=1024)
def _checked_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a header")
    return name


@functools.lru_cache(maxsize=1024)
def _checked_subject(subject: str) -> str:
    if not _SUBJECT.fullmatch(subject):
        raise ValueError(f"{subject!r} cannot be a subject")
    return subject
