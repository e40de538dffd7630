"""A final read is one that nothing came after."""

from __future__ import annotations

from harness.records import Message, State
from harness.settling import states_channel


def seen(state: str, *, read_ns: int) -> State:
    """Make the last read of the only key."""
    return State(key="o1", state=state, is_final=False, read_ns=read_ns, settled_ns=None, amount_minor=None)


def stored(*, at_ns: int) -> Message:
    """Make a message about it."""
    return Message(
        stream="ORDERS",
        sequence=1,
        subject="orders.created",
        key="o1",
        stored_ns=at_ns,
        message_id=None,
        size_bytes=1,
        trace_id=None,
        span_id=None,
        headers="{}",
    )


def test_an_order_that_was_read_absent_before_it_was_stored_has_no_final_read() -> None:
    """Its answer was lost, and the broker took it after we had looked: it is not dropped, nobody has looked."""
    channel = states_channel([seen("absent", read_ns=10)], [], [stored(at_ns=11)])

    assert (channel.expected, channel.received, channel.complete) == (1, 0, False)
    assert channel.why == "1 key(s) have no final read, the first: o1"


def test_an_order_that_was_read_absent_after_it_was_stored_is_dropped() -> None:
    """The boundary: both at one moment."""
    assert states_channel([seen("absent", read_ns=11)], [], [stored(at_ns=11)]).complete
    assert states_channel([seen("PENDING", read_ns=10)], [], [stored(at_ns=11)]).complete
