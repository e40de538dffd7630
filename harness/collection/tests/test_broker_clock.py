"""Times of a broker whose clock is not ours: told by ours, or said to be unsure."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from harness.collection.broker import BrokerRecords
from harness.collection.broker_clock import NOT_TOLD, BrokerClock, ClockDifference
from harness.environment.tests.backends import somebody
from harness.environment.tests.clients import STREAM, let_in, published

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

S = 1_000_000_000


@dataclass(slots=True)
class OurClock:
    """A clock of the harness that is wrong. late_s: how far behind the broker's."""

    late_s: float = 0.0

    def __call__(self) -> int:
        """Tell the time."""
        return time.time_ns() - round(self.late_s * S)


def key_of(_subject: str, _headers: Mapping[str, str], payload: bytes) -> str:
    """Each message is about what it says."""
    return payload.decode()


@pytest.mark.usefixtures("toxiproxy_binary")
@pytest.mark.parametrize(("late_s", "direction"), [(40.0, "ahead of"), (-40.0, "behind")])
async def test_what_a_broker_stored_is_told_by_our_clock(tmp_path: Path, late_s: float, direction: str) -> None:
    """With its own times an order would be 40 s late, or in time by 40 s too much."""
    clock = OurClock(late_s)
    async with somebody(tmp_path) as theirs, let_in(theirs.access) as client:
        records = BrokerRecords(client, now_ns=clock)
        await records.capture_advisories()
        jetstream = client.jetstream()
        began_ns = clock()
        await jetstream.add_stream(name=STREAM, subjects=["orders.>"])
        await published(jetstream, "one")
        ended_ns = clock()

        (message,), channel = await records.messages((STREAM,), key_of)
        advisories, _channel = await records.advisories()

    # As near as a question to a broker on this machine tells.
    assert began_ns - S // 10 <= message.stored_ns <= ended_ns + S // 10
    assert all(began_ns - S // 10 <= advisory.at_ns <= ended_ns + S // 10 for advisory in advisories)
    assert advisories
    assert channel.complete
    assert f"s {direction} ours; its times are told by ours" in channel.why


@pytest.mark.usefixtures("toxiproxy_binary")
async def test_where_the_clock_is_the_same_the_times_are_the_brokers_own(tmp_path: Path) -> None:
    """Correcting them by what a question took would only make them worse."""
    async with somebody(tmp_path) as theirs, let_in(theirs.access) as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(name=STREAM, subjects=["orders.>"])
        await published(jetstream, "one")
        ((told, channel), (stored,)) = (
            await BrokerRecords(client).messages((STREAM,), key_of),
            await (await jetstream.pull_subscribe("orders.>", "reader")).fetch(1),
        )

    assert [row.stored_ns for row in told] == [int(stored.reply.split(".")[-2])]
    assert (channel.complete, channel.why) == (True, "")


@pytest.mark.usefixtures("toxiproxy_binary")
async def test_a_clock_that_is_set_during_a_run_makes_the_times_unsure(tmp_path: Path) -> None:
    """What was stored before is told by another clock than what was stored after."""
    clock = OurClock()
    async with somebody(tmp_path) as theirs, let_in(theirs.access) as client:
        records = BrokerRecords(client, now_ns=clock)
        await records.capture_advisories()
        await client.jetstream().add_stream(name=STREAM, subjects=["orders.>"])
        clock.late_s = 2.0

        _rows, channel = await records.messages((STREAM,), key_of)

    assert not channel.complete
    assert "moved against each other during the run, by 2.0" in channel.why


async def test_a_broker_that_does_not_tell_its_time_makes_the_times_unsure() -> None:
    """Silence about the clock is not the right time."""

    async def answer(_subject: str) -> bytes:
        """Answer as a broker of before 2.10 does."""
        return json.dumps({"config": {"name": STREAM}}).encode()

    clock = BrokerClock(answer, now_ns=time.time_ns)
    await clock.note(STREAM)

    assert await clock.difference(STREAM) is NOT_TOLD
    assert "does not tell its time" in await clock.why_unsure()


@pytest.mark.parametrize(
    ("low_ns", "high_ns", "ahead_ns"),
    [(-5, 5, 0), (0, 9, 0), (-9, 0, 0), (1, 9, 5), (-9, -1, -5)],
)
def test_a_difference_is_one_only_beyond_what_the_question_took(low_ns: int, high_ns: int, ahead_ns: int) -> None:
    """Where 0 is possible nothing is known against it."""
    assert ClockDifference(low_ns=low_ns, high_ns=high_ns).ahead_ns == ahead_ns


@pytest.mark.parametrize(
    ("low_ns", "high_ns", "moved_ns"),
    [(0, 10, 0), (10, 20, 0), (11, 20, 1), (-20, -1, -1), (-20, 0, 0)],
)
def test_a_clock_moved_only_if_both_readings_cannot_be_true(low_ns: int, high_ns: int, moved_ns: int) -> None:
    """A slower answer says less, and nothing else."""
    before = ClockDifference(low_ns=0, high_ns=10)

    assert before.moved_ns(ClockDifference(low_ns=low_ns, high_ns=high_ns)) == moved_ns
