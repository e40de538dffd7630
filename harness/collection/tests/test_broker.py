"""What the broker says of its consumers: all of them, or that some are not known."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from harness.collection.broker import BrokerRecords
from harness.environment.tests.backends import somebody
from harness.environment.tests.clients import STREAM, let_in, published

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.client import Client


@pytest.mark.usefixtures("toxiproxy_binary")
async def test_consumers_are_all_read_though_a_broker_lists_them_in_pages(tmp_path: Path) -> None:
    """A page holds 256; each of them owes the one message there is."""
    async with somebody(tmp_path) as theirs, let_in(theirs.access) as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(name=STREAM, subjects=["orders.>"])
        for number in range(300):
            await jetstream.add_consumer(STREAM, durable_name=f"worker-{number}", ack_policy="explicit")
        await published(jetstream, "one")
        records = BrokerRecords(client)
        rows, channel = await records.consumers((STREAM,))

        assert {row.name for row in rows} == {f"worker-{number}" for number in range(300)}
        assert channel.complete
        assert await records.backlog((STREAM,)) == 300


class Clustered:
    """A broker whose answer leaves somebody out, as a cluster does while nobody leads that consumer."""

    def jetstream(self, **_more: float) -> None:
        """Ask nothing through it."""

    async def request(self, _subject: str, _payload: bytes, **_more: float) -> SimpleNamespace:
        """Answer."""
        listed = {
            "stream_name": STREAM,
            "name": "worker",
            "created": "2026-01-01T00:00:00Z",
            "config": {"durable_name": "worker", "ack_policy": "explicit"},
            "delivered": {"consumer_seq": 1, "stream_seq": 1},
            "ack_floor": {"consumer_seq": 1, "stream_seq": 1},
            "num_pending": 0,
            "num_ack_pending": 0,
        }
        answer = {"total": 2, "offset": 0, "limit": 256, "consumers": [listed], "missing": ["refunder"]}
        return SimpleNamespace(data=json.dumps(answer).encode())


@pytest.mark.parametrize("streams", [(STREAM,)])
async def test_a_consumer_that_nobody_answers_for_owes_and_is_missed(streams: tuple[str, ...]) -> None:
    """It may have the one message in hand that everything waits for."""
    records = BrokerRecords(cast("Client", Clustered()))

    rows, channel = await records.consumers(streams)

    assert await records.backlog(streams) == 1
    assert (rows, channel.complete) == ([], False)
    assert "nobody answers for refunder" in channel.why
