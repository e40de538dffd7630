"""Who leads, and who is behind, from what servers say: also when they say different things, or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from harness.environment.nats.cluster_view import META, ClusterView, GroupView, groups_in, look_at
from harness.environment.ports import LOOPBACK


def follows(leader: str | None, *others: str, behind: str = "") -> GroupView:
    """One server's view of a group: whom it follows, who else belongs to it, and who of them is behind."""
    return GroupView(leader=leader, others={other: other != behind for other in others})


def cluster(*, unheard: tuple[str, ...] = (), **views: GroupView) -> ClusterView:
    """What servers say of the group of all of them; by name."""
    return ClusterView(
        heard={name: {META: view} for name, view in views.items()}, unheard=dict.fromkeys(unheard, "no answer")
    )


def test_a_leader_is_one_that_says_so_and_that_most_follow() -> None:
    """The usual case."""
    view = cluster(a=follows("b", "b", "c"), b=follows("b", "a", "c"), c=follows("b", "a", "b"))

    assert view.leader_of(META) == "b"
    assert [view.why_behind(name) for name in "abc"] == [None] * 3


def test_a_leader_that_was_cut_off_and_still_believes_in_itself_does_not_lead() -> None:
    """The others have elected another one; it is behind, they are not."""
    view = cluster(a=follows("a", "b", "c"), b=follows("b", "a", "c", behind="a"), c=follows("b", "a", "b"))

    assert view.leader_of(META) == "b"
    assert view.why_behind("a") == "b, which leads meta, does not find it up to date"
    assert view.why_behind("b") is view.why_behind("c") is None


def test_a_leader_that_is_dead_does_not_lead_although_its_peers_still_follow_it() -> None:
    """They do so until the next election."""
    view = cluster(a=follows("b", "b", "c"), c=follows("b", "a", "b"), unheard=("b",))

    assert view.leader_of(META) is None
    assert view.why_behind("a") == "meta has no leader: a follows b, c follows b, b says nothing (no answer)"
    assert view.why_behind("b") == "no answer"


def test_a_leader_whom_only_half_of_the_group_follow_does_not_lead() -> None:
    """One of three is not most of them, whoever else is silent."""
    view = cluster(a=follows("a", "b", "c"), b=follows(None, "a", "c"), unheard=("c",))

    assert view.leader_of(META) is None
    assert view.why_behind("a") == "meta has no leader: a follows a, b follows nobody, c says nothing (no answer)"


def test_what_one_server_keeps_alone_is_led_by_it() -> None:
    """A stream without replicas is a group of one."""
    groups = {META: follows("a", "b"), "ALONE": follows("a")}
    view = ClusterView(heard={"a": groups, "b": {META: follows("a", "a")}}, unheard={})

    assert view.leader_of("ALONE") == "a"
    assert view.why_behind("b") is None, "it does not belong to it"


def test_a_server_that_does_not_know_yet_what_it_keeps_is_behind() -> None:
    """It has just started, is up to date in the group of all, and hears of the stream in a moment."""
    view = ClusterView(
        heard={
            "a": {META: follows("a", "b", "c"), "ORDERS": follows("a", "b", "c", behind="b")},
            "b": {META: follows("a", "a", "c")},
            "c": {META: follows("a", "a", "b"), "ORDERS": follows("a", "a", "b")},
        },
        unheard={},
    )

    assert view.why_behind("b") == "a, which leads ORDERS, does not find it up to date"
    assert view.knows("ORDERS")
    assert not view.knows("NOTHING")


def test_a_server_outside_every_cluster_is_never_up_to_date() -> None:
    """It was started without routes."""
    assert ClusterView(heard={"a": {}}, unheard={}).why_behind("a") == "it is not one of a cluster"


def test_streams_and_consumers_are_found_in_what_a_server_says() -> None:
    """As nats-server 2.15 writes it; an offline replica is never up to date."""
    said = {
        "meta_cluster": {"leader": "a", "replicas": [{"name": "b", "current": True, "offline": True}]},
        "account_details": [
            {
                "stream_detail": [
                    {
                        "name": "ORDERS",
                        "cluster": {"replicas": [{"name": "b", "current": True}, {"name": "c", "current": False}]},
                        "consumer_detail": [{"name": "payments", "cluster": {"leader": "c"}}, {"name": "alone"}],
                    }
                ]
            },
            {"name": "an account without streams"},
        ],
    }

    assert groups_in(said) == {
        META: GroupView(leader="a", others={"b": False}),
        "ORDERS": GroupView(leader=None, others={"b": True, "c": False}),
        "ORDERS/payments": GroupView(leader="c", others={}),
    }


@pytest.mark.parametrize("said", [[], {"account_details": ["x"]}, {"meta_cluster": "me"}])
def test_what_makes_no_sense_is_refused(said: object) -> None:
    """The message shows it."""
    with pytest.raises(ValueError, match="is not a JSON object"):
        groups_in(said)


@pytest.fixture
async def servers() -> AsyncIterator[dict[str, str]]:
    """Addresses of something that answers, something that answers nonsense, and something that is gone."""

    async def answer(body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    sensible = json.dumps({"meta_cluster": {"leader": "a", "replicas": []}}).encode()
    talking = await asyncio.start_server(lambda *ends: answer(sensible, *ends), LOOPBACK, 0)
    babbling = await asyncio.start_server(lambda *ends: answer(b"<html>", *ends), LOOPBACK, 0)
    gone = await asyncio.start_server(lambda *ends: answer(b"", *ends), LOOPBACK, 0)
    addresses = {
        name: f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
        for name, server in (("a", talking), ("b", babbling), ("c", gone))
    }
    gone.close()
    await gone.wait_closed()
    yield addresses
    for server in (talking, babbling):
        server.close()
        await server.wait_closed()


async def test_a_server_that_says_nothing_sensible_is_in_the_view_with_the_reason(servers: dict[str, str]) -> None:
    """Looking never fails; the leader is known without the others."""
    view = await look_at(servers)

    assert view.leader_of(META) == "a"
    assert sorted(view.unheard) == ["b", "c"]
    assert "Expecting value" in view.unheard["b"]
    assert "refused" in view.unheard["c"] or "Connect call failed" in view.unheard["c"]
