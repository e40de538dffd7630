"""NATS frames in and out: whatever way bytes are split, whatever they are, and how they leave together."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from system.jetstream.wire import (
    LINE_MAX_BYTES,
    TICK_S,
    FrameReader,
    FrameWriter,
    Message,
    WireError,
    answer_frame,
    header_block,
    headers_in,
    publish_frame,
)
from system.tests.parts import wait_until

OURS = (b"1", b"27")
NAMES = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40).map(str.strip)

Seen = tuple[str, str, bytes, dict[str, str]]


def message_frame(sid: bytes, subject: str, reply: str, payload: bytes, headers: dict[str, str] | None) -> bytes:
    """The frame with which a server delivers this."""
    words = [subject.encode(), sid, *([reply.encode()] if reply else [])]
    if headers is None:
        return b"MSG %b %d\r\n%b\r\n" % (b" ".join(words), len(payload), payload)
    block = header_block(headers)
    return b"HMSG %b %d %d\r\n%b%b\r\n" % (b" ".join(words), len(block), len(block) + len(payload), block, payload)


subjects = st.from_regex(r"[a-zA-Z$_][a-zA-Z0-9_$]{0,8}(\.[a-zA-Z0-9_$é-]{1,8}){0,3}", fullmatch=True)
messages = st.tuples(
    st.sampled_from((*OURS, b"3")),
    subjects,
    st.one_of(st.just(""), subjects),
    st.binary(max_size=300),
    st.one_of(st.none(), st.dictionaries(NAMES, VALUES, max_size=4)),
)
others = st.sampled_from((b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Stale Connection'\r\n", b'INFO {"a":1}\r\n'))
streams = st.lists(st.one_of(messages, others), max_size=12)


class Reading:
    """A reader with receivers for our subscriptions, and everything that came out of it."""

    def __init__(self) -> None:
        self.reader = FrameReader()
        self.seen: dict[bytes, list[Seen]] = {sid: [] for sid in OURS}
        self.calls = 0
        self.others = b""
        for sid in OURS:
            self.reader.receivers[sid] = lambda arrived, sid=sid: self._take(sid, arrived)  # type: ignore[misc]

    def feed(self, *parts: bytes) -> None:
        """These bytes arrive one after the other."""
        for part in parts:
            self.others += self.reader.feed(part)

    def _take(self, sid: bytes, arrived: list[Message]) -> None:
        self.calls += 1
        self.seen[sid] += [(each.subject, each.reply, each.payload, dict(each.headers)) for each in arrived]


def expected(frames: list[object]) -> tuple[bytes, dict[bytes, list[Seen]], bytes]:
    """The bytes of these frames, and what must come out of them."""
    data, rest, seen = b"", b"", {sid: list[Seen]() for sid in OURS}
    for frame in frames:
        if isinstance(frame, bytes):
            data, rest = data + frame, rest + frame
            continue
        assert isinstance(frame, tuple)
        sid, subject, reply, payload, headers = frame
        encoded = message_frame(sid, subject, reply, payload, headers)
        data += encoded
        if sid in OURS:
            seen[sid].append((subject, reply, payload, headers or {}))
        else:
            rest += encoded
    return data, seen, rest


@given(frames=streams, cuts=st.lists(st.integers(0, 4000), max_size=8))
def test_however_bytes_are_split_the_same_messages_come_out(frames: list[object], cuts: list[int]) -> None:
    """In the order in which they were sent; and what is for nobody here comes out untouched."""
    data, seen, rest = expected(frames)
    ends = sorted({cut for cut in cuts if cut < len(data)} | {len(data)})
    reading = Reading()

    reading.feed(*(data[begin:end] for begin, end in itertools.pairwise([0, *ends])))

    assert reading.seen == seen
    assert reading.others == rest


@given(frames=streams)
def test_even_byte_by_byte(frames: list[object]) -> None:
    """A frame may be cut anywhere: within its line, between CR and LF, within its headers."""
    data, seen, rest = expected(frames)
    reading = Reading()

    reading.feed(*(data[place : place + 1] for place in range(len(data))))

    assert reading.seen == seen
    assert reading.others == rest


def test_what_arrives_together_is_handed_over_together() -> None:
    """One call for each receiver, however many messages there are for it in between each other."""
    frames = [message_frame(sid, "a", "", str(n).encode(), None) for n in range(50) for sid in OURS]
    reading = Reading()

    reading.feed(b"".join(frames))

    assert reading.calls == 2
    assert [payload for _, _, payload, _ in reading.seen[b"1"]] == [str(n).encode() for n in range(50)]


@given(data=st.binary(max_size=400), before=st.sampled_from((b"", b"MSG ", b"HMSG a 1 ", b"MSG a 1 -5\r\n")))
@example(data=b"MSG a 1 -30\r\n" * 3, before=b"")
@example(data=b"HMSG a 1 12 -4\r\n\r\n\r\n", before=b"")
@example(data=b"HMSG a 1 99 4\r\nabcd\r\n", before=b"")
@example(data=b"MSG 1\r\n", before=b"")
@example(data=b"MSG a 1 99999999999\r\n", before=b"")
def test_bytes_that_are_no_frames_are_an_error_and_never_a_hang(data: bytes, before: bytes) -> None:
    """Whatever a broken peer sends, reading it ends."""
    reading = Reading()
    try:
        reading.feed(before + data, b"\r\n")
    except WireError as error:
        assert str(error)  # noqa: PT017 - it may also be taken for frames of somebody else


@pytest.mark.parametrize("line", [b"MSG a 1 -30", b"HMSG a 1 99 4", b"HMSG a 1 -1 4", b"MSG 1", b"MSG a 1 x"])
def test_sizes_that_cannot_be_are_told(line: bytes) -> None:
    """The message shows the line: there is no other way to find who sent it."""
    with pytest.raises(WireError, match=line.decode()):
        Reading().feed(line + b"\r\nabcd\r\n")


def test_a_line_that_does_not_end_is_given_up() -> None:
    """Nobody makes us keep more than a bound of what may never be a frame."""
    reading = Reading()
    reading.feed(b"MSG " + b"x" * (LINE_MAX_BYTES - 10))
    with pytest.raises(WireError, match="a line of more than"):
        reading.feed(b"x" * 100)


def test_after_a_reset_the_rest_of_the_old_connection_is_forgotten() -> None:
    """Half a frame of one connection must not swallow the beginning of the next."""
    reading = Reading()
    reading.feed(b"MSG a 1 10\r\n12345")
    reading.reader.reset()
    reading.feed(b"MSG b 1 1\r\nx\r\n")
    assert reading.seen[b"1"] == [("b", "", b"x", {})]


@given(headers=st.dictionaries(NAMES, VALUES, max_size=6))
def test_headers_arrive_as_they_were_sent(headers: dict[str, str]) -> None:
    """Names keep their case, values their characters."""
    assert headers_in(header_block(headers)) == headers


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"", {}),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n",
         {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "7"}),
        (b"NATS/1.0\r\nA:1\r\nB:  2 \r\na: 3\r\n\r\n", {"A": "1", "B": "2", "a": "3"}),
        (b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n", {"A": "2"}),
        (b"NATS/1.0\r\nno header\r\nbad name: 1\r\n: 2\r\nUrl: http://x:1\r\n\r\n", {"Url": "http://x:1"}),
        (b"NATS/1.0\r\nA: \xff\r\n\r\n", {"A": "\ufffd"}),
    ],
)  # fmt: skip
def test_headers_as_servers_and_other_clients_write_them(block: bytes, headers: dict[str, str]) -> None:
    """Status lines, any spacing, repeated names, bytes that are no text; lines that are no headers are passed over."""
    assert headers_in(block) == headers


def test_a_line_break_in_a_header_begins_no_header_and_no_frame() -> None:
    """What comes from a customer must not become a command to the broker."""
    block = header_block({"Reason": "x\r\n\r\nPUB orders.created 0\r\n\r\n", "B": "1"})
    assert headers_in(block) == {"Reason": "x    PUB orders.created 0", "B": "1"}
    assert block.count(b"\r\n") == 4


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "é"])
def test_a_name_that_cannot_be_a_headers_is_refused(name: str) -> None:
    """It comes from this code, so it is a mistake in it."""
    with pytest.raises(ValueError, match="cannot be the name of a header"):
        header_block({name: "1"})


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPING", "a\tb"])
def test_a_subject_that_cannot_be_one_is_refused(subject: str) -> None:
    """As above; a subject with a line break in it would be a command."""
    with pytest.raises(ValueError, match="cannot be a subject"):
        publish_frame(subject, b"")


def test_frames_look_as_the_protocol_has_them() -> None:
    """With and without a reply subject, with and without headers."""
    block = header_block({"A": "1"})
    assert publish_frame("a.b", b"xyz") == b"PUB a.b  3\r\nxyz\r\n"
    assert publish_frame("a.b", b"xyz", reply="r") == b"PUB a.b r 3\r\nxyz\r\n"
    assert publish_frame("a", b"xyz", reply="r", block=block) == b"HPUB a r 18 21\r\nNATS/1.0\r\nA: 1\r\n\r\nxyz\r\n"
    assert answer_frame("$JS.ACK.x", b"+ACK") == b"PUB $JS.ACK.x 4\r\n+ACK\r\n"


class Writing:
    """A writer, and what it wrote and when."""

    def __init__(self) -> None:
        self.written: list[tuple[float, bytes]] = []
        self.writer = FrameWriter(self._write)

    def _write(self, data: bytes) -> None:
        self.written.append((asyncio.get_running_loop().time(), data))


async def test_after_a_pause_a_frame_leaves_at_once_and_a_crowd_leaves_together() -> None:
    """Nobody waits who is alone; a hundred that come while one tick lasts cost one write."""
    writing = Writing()
    writing.writer.put(b"alone")
    await asyncio.sleep(0)
    assert [data for _, data in writing.written] == [b"alone"]

    frames = [b"%d" % number for number in range(100)]
    for frame in frames:
        writing.writer.put(frame)
        await asyncio.sleep(0)
    await wait_until(lambda: not writing.writer.waiting_bytes)

    times_s = [at_s for at_s, _ in writing.written]
    # The loop's clock may run up to its resolution early.
    assert all(later - sooner > 0.9 * TICK_S for sooner, later in itertools.pairwise(times_s))
    assert b"".join(data for _, data in writing.written[1:]) == b"".join(frames)
    assert len(writing.written) < 50


async def test_a_flush_writes_now_and_only_once() -> None:
    """Whoever closes does not wait for the tick."""
    writing = Writing()
    writing.writer.put(b"a")
    writing.writer.put(b"b")
    writing.writer.flush()
    writing.writer.flush()
    await asyncio.sleep(2 * TICK_S)
    assert [data for _, data in writing.written] == [b"ab"]


async def test_what_is_discarded_never_leaves() -> None:
    """Frames for a connection that is gone are not for the next one."""
    writing = Writing()
    writing.writer.put(b"a")
    writing.writer.discard()
    await asyncio.sleep(2 * TICK_S)
    assert not writing.written
    assert writing.writer.waiting_bytes == 0
