"""toxiproxy-python keeps its server's address in class attributes; the fixture's clients do not share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
from toxiproxy import Proxy, Toxiproxy
from toxiproxy.api import APIConsumer
from toxiproxy.exceptions import NotFound, ProxyExists

from harness.environment.choice import BackendChoice
from harness.fixtures.proxies import RunningProxies, proxies
from harness.fixtures.session import SessionParts
from harness.fixtures.toxiproxy import RunningToxiproxy, pointing


@dataclass(frozen=True, slots=True, kw_only=True)
class Somewhere:
    """A part that a proxy can be put in front of."""

    name: str = "nats"
    address: str = "127.0.0.1:4222"
    url: str = "nats://127.0.0.1:4222"
    url_with_credentials: str = "nats://user:secret@127.0.0.1:4222"


@pytest.fixture(scope="module")
def session() -> Iterator[SessionParts]:
    """The parts of this module."""
    with SessionParts(BackendChoice(), runs_directory=None, progress=print) as parts:
        yield parts


@pytest.fixture
def servers(session: SessionParts, toxiproxy_binary: Path) -> Iterator[tuple[RunningProxies, RunningProxies]]:
    """Two real servers in one process."""
    with (
        session.lend("toxiproxy", session.single, proxies) as one,
        session.lend("toxiproxy", session.single, proxies, is_fresh=True) as other,
    ):
        yield one, other


def test_two_servers_in_one_process_do_not_mix(servers: tuple[RunningProxies, RunningProxies]) -> None:
    """Neither do the proxies that their clients gave, whatever was asked in between."""
    one, other = (RunningToxiproxy(server.address) for server in servers)
    here = one.create("127.0.0.1:1", "here")
    there = other.create("127.0.0.1:2", "there")

    here.add_toxic(type="latency", attributes={"latency": 5})
    there.disable()

    assert set(one.proxies()) == {"here"}
    assert set(other.proxies()) == {"there"}
    assert here.get_toxic("latency_downstream").attributes["latency"] == 5
    assert there.toxics() == {}
    assert one.get_proxy("here").enabled
    assert not other.get_proxy("there").enabled


def test_two_threads_use_two_servers_at_once(servers: tuple[RunningProxies, RunningProxies]) -> None:
    """The class attributes belong to one call at a time."""

    def fill(server: RunningProxies) -> None:
        client = RunningToxiproxy(server.address)
        for number in range(20):
            client.create("127.0.0.1:1", f"{server.address}-{number}")

    threads = [Thread(target=fill, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for server in servers:
        names = RunningToxiproxy(server.address).proxies()
        assert set(names) == {f"{server.address}-{number}" for number in range(20)}


def test_what_the_library_says_of_itself_is_as_it_was(servers: tuple[RunningProxies, RunningProxies]) -> None:
    """Within the scope a plain client is one of this server; afterwards of whatever it was of before."""
    before = APIConsumer.host, APIConsumer.port

    with pointing(servers[0].address) as client:
        client.create("127.0.0.1:1", "seen")
        assert set(Toxiproxy().proxies()) == {"seen"}
        RunningToxiproxy(servers[1].address).proxies()
        assert set(Toxiproxy().proxies()) == {"seen"}

    assert (APIConsumer.host, APIConsumer.port) == before


def test_it_is_the_client_that_people_know(servers: tuple[RunningProxies, RunningProxies]) -> None:
    """Its classes, its errors, its methods."""
    client = RunningToxiproxy(servers[0].address)
    proxy = client.create(upstream="127.0.0.1:1", name="known")

    assert isinstance(client, Toxiproxy)
    assert isinstance(proxy, Proxy)
    assert client.running()
    assert b"2.12" in client.version()
    with pytest.raises(ProxyExists):
        client.create(upstream="127.0.0.1:1", name="known")
    with pytest.raises(NotFound):
        proxy.destroy_toxic("none")
    with proxy.down():
        assert not client.get_proxy("known").enabled
    assert client.get_proxy("known").enabled
    again = [{"name": "known", "upstream": "127.0.0.1:3", "listen": "127.0.0.1:0"}]
    assert [each.upstream for each in client.populate(again)] == ["127.0.0.1:3"]
    client.destroy_all()
    assert client.proxies() == {}


def test_a_proxy_in_front_of_a_part_knows_the_way_through(servers: tuple[RunningProxies, RunningProxies]) -> None:
    """With and without the login; a second one has a name of its own."""
    client = RunningToxiproxy(servers[0].address)
    first, second = client.in_front_of(Somewhere()), client.in_front_of(Somewhere())

    assert first.url == f"nats://{first.address}"
    assert first.url_with_credentials == f"nats://user:secret@{first.address}"
    assert first.upstream == "127.0.0.1:4222"
    assert (first.name, second.name) == ("nats", "nats1")
    with pytest.raises(AttributeError, match="was not made by in_front_of"):
        _ = client.get_proxy("nats").url


def test_a_wedged_server_is_replaced(servers: tuple[RunningProxies, RunningProxies]) -> None:
    """One that no longer answers must not take the next test with it."""
    server = servers[1]
    RunningToxiproxy(server.address).create("127.0.0.1:1", "left")
    server._owner.run(server._part.pause())

    server.clear()

    assert RunningToxiproxy(server.address).proxies() == {}
