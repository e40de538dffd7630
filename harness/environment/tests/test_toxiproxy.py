"""The real Toxiproxy through our own client: cuts, toxics, counters, and what it says when it refuses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness.environment.links import NetworkLink
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.processes.supervisor import Supervisor
from harness.environment.toxiproxy.client import ByteCounters, ToxiproxyClient, byte_counters
from harness.environment.toxiproxy.server import ToxiproxyServer
from harness.environment.toxiproxy.toxics import (
    BandwidthToxic,
    Direction,
    LatencyToxic,
    LimitDataToxic,
    ResetPeerToxic,
    SlicerToxic,
    SlowCloseToxic,
    TimeoutToxic,
    Toxic,
)
from harness.errors import EnvironmentFailedError, PlanError

LINK = "payments->nats"


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    """A server that sends back what it gets."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            while chunk := await reader.read(1024):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass  # a proxy may reset its upstream side
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(handle, LOOPBACK, 0)
    yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in handlers:
        task.cancel()
    await asyncio.gather(*handlers, return_exceptions=True)
    await server.wait_closed()


@pytest.fixture
async def server(
    supervisor: Supervisor, toxiproxy_binary: Path, lease: PortLease, echo: str, tmp_path: Path
) -> ToxiproxyServer:
    """A running Toxiproxy with one link in front of the echo server."""
    api, listen = lease.take(2)

    async def find_binary() -> Path:
        return toxiproxy_binary

    started = ToxiproxyServer(
        host=supervisor,
        find_binary=find_binary,
        address=f"{LOOPBACK}:{api}",
        links=(
            NetworkLink(
                name=LINK,
                client="payments",
                server="nats",
                listen=f"{LOOPBACK}:{listen}",
                upstream=echo,
                proxy=LINK,
            ),
        ),
        log_path=tmp_path / "toxiproxy.log",
        environment={"PATH": os.defpath},
    )
    await started.start()
    return started


@pytest.fixture
def client(server: ToxiproxyServer) -> ToxiproxyClient:
    """The client of that server."""
    return server.client


class Conversation:
    """A connection through the proxy of the link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Made by `connected`."""
        self.reader = reader
        self.writer = writer

    async def echoes(self, text: bytes) -> bool:
        """Whether these bytes come back; False when the connection ends instead."""
        try:
            self.writer.write(text)
            await self.writer.drain()
            return await self.reader.readexactly(len(text)) == text
        except (asyncio.IncompleteReadError, ConnectionError):
            return False


async def connected(client: ToxiproxyClient) -> Conversation:
    """Open a connection through the link's proxy."""
    host, _, port = (await client.proxy(LINK)).listen.rpartition(":")
    return Conversation(*await asyncio.open_connection(host, int(port)))


async def test_a_link_carries_bytes_and_its_name_needs_no_care(client: ToxiproxyClient, echo: str) -> None:
    """`payments->nats` must be quoted in paths, and comes back as it was."""
    proxies = await client.proxies()
    conversation = await connected(client)

    assert list(proxies) == [LINK]
    assert proxies[LINK].upstream == echo
    assert proxies[LINK].is_enabled
    assert await conversation.echoes(b"hello")
    conversation.writer.transport.abort()


async def test_disabling_a_proxy_ends_its_connections_and_refuses_new_ones(client: ToxiproxyClient) -> None:
    """A clean cut; enabling heals it on the same address."""
    conversation = await connected(client)
    assert await conversation.echoes(b"hello")

    await client.disable(LINK)
    assert not await conversation.echoes(b"are you there")
    with pytest.raises(ConnectionRefusedError):
        await connected(client)
    await client.enable(LINK)
    healed = await connected(client)

    assert await healed.echoes(b"hello again")
    conversation.writer.transport.abort()
    healed.writer.transport.abort()


async def test_a_timeout_toxic_swallows_bytes_and_the_counters_say_so_after_the_heal(client: ToxiproxyClient) -> None:
    """The grip of a partition: bytes that went in and never came out. Counted only when the connection has ended."""
    conversation = await connected(client)
    assert await conversation.echoes(b"before")

    toxic = await client.add_toxic(LINK, TimeoutToxic(), direction=Direction.UPSTREAM)
    conversation.writer.write(b"x" * 1000)
    await conversation.writer.drain()
    # The same bytes on a healthy direction would be back within this; nothing can be awaited for their absence.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await conversation.reader.read(1)
    during = await client.bytes_of(LINK, Direction.UPSTREAM)
    await client.remove_toxic(LINK, toxic)
    ended = await conversation.reader.read()
    async with asyncio.timeout(5):
        while (after := await client.bytes_of(LINK, Direction.UPSTREAM)).received_bytes == 0:
            pass  # each look is a request and a wait in itself

    assert ended == b"", "removing the toxic closes the connections it held"
    assert during.swallowed_bytes == 0, "the trap: counters do not move while the connection stands"
    assert after == ByteCounters(received_bytes=1006, sent_bytes=6)
    assert after.swallowed_bytes == 1000
    conversation.writer.transport.abort()


@pytest.mark.parametrize(
    "toxic",
    [
        LatencyToxic(latency_ms=5, jitter_ms=1),
        BandwidthToxic(rate_kib_per_s=100),
        SlowCloseToxic(delay_ms=5),
        TimeoutToxic(timeout_ms=5),
        ResetPeerToxic(),
        SlicerToxic(average_bytes=10, variation_bytes=2, delay_us=5),
        LimitDataToxic(limit_bytes=10),
    ],
)
async def test_every_toxic_is_accepted_with_the_values_it_was_given(client: ToxiproxyClient, toxic: Toxic) -> None:
    """Toxiproxy ignores attributes it does not know, so a misspelt one would silently do nothing."""
    name = await client.add_toxic(LINK, toxic, direction=Direction.DOWNSTREAM)
    told = await client.toxic_attributes(LINK, name)

    assert name == f"{toxic.kind}_downstream"
    assert await client.toxics(LINK) == (name,)
    assert told == toxic.attributes()


async def test_reset_enables_every_proxy_and_removes_every_toxic(client: ToxiproxyClient) -> None:
    """The broom after a fault that broke half-way."""
    await client.add_toxic(LINK, LatencyToxic(latency_ms=5), direction=Direction.UPSTREAM)
    await client.disable(LINK)

    await client.reset()

    proxy = await client.proxy(LINK)
    assert proxy.is_enabled
    assert proxy.toxics == ()


async def test_a_proxy_that_does_not_exist_is_named_with_toxiproxys_answer(client: ToxiproxyClient) -> None:
    """The error must say which proxy and what was answered."""
    with pytest.raises(EnvironmentFailedError, match=r"refused disabling proxy 'a->b': 404 proxy not found"):
        await client.disable("a->b")


async def test_a_second_proxy_of_one_name_is_refused(client: ToxiproxyClient, echo: str) -> None:
    """And so is one on an address that is taken."""
    taken = (await client.proxy(LINK)).listen

    with pytest.raises(EnvironmentFailedError, match="409 proxy already exists"):
        await client.create(LINK, listen=f"{LOOPBACK}:0", upstream=echo)
    with pytest.raises(EnvironmentFailedError, match="address already in use"):
        await client.create("other", listen=taken, upstream=echo)


async def test_a_deleted_proxy_is_gone(client: ToxiproxyClient) -> None:
    """With its connections."""
    await client.delete(LINK)

    assert await client.proxies() == {}


async def test_a_restart_of_the_server_brings_the_links_back_without_toxics(
    server: ToxiproxyServer, supervisor: Supervisor
) -> None:
    """The way out of a wedged API."""
    await server.client.add_toxic(LINK, TimeoutToxic(), direction=Direction.UPSTREAM)
    await supervisor.kill("toxiproxy")

    await server.start()

    conversation = await connected(server.client)
    assert await conversation.echoes(b"hello")
    assert await server.client.toxics(LINK) == ()
    conversation.writer.transport.abort()


async def test_an_api_that_hangs_is_given_up_within_its_time_out(
    supervisor: Supervisor, server: ToxiproxyServer
) -> None:
    """A black-holed upstream wedges the whole API; a paused server looks the same from here."""
    await supervisor.pause("toxiproxy")
    hasty = ToxiproxyClient(server.client.address, timeout_s=0.1)

    with pytest.raises(EnvironmentFailedError, match=r"did not answer within 0\.1 s to disabling proxy.*restart it"):
        await hasty.disable(LINK)
    await supervisor.resume("toxiproxy")


def series(which: str, direction: str, listener: str, proxy: str, value: str) -> str:
    """One line of the page, as Toxiproxy prints it."""
    labels = f'direction="{direction}",listener="{listener}",proxy="{proxy}",upstream="u"'
    return f"toxiproxy_proxy_{which}_bytes_total{{{labels}}} {value}"


def test_counters_are_read_with_any_name_and_summed_over_listeners() -> None:
    """Prometheus escapes quotes and backslashes; a proxy that was created again has a second series."""
    page = "\n".join(
        (
            "# HELP toxiproxy_proxy_received_bytes_total x",
            series("received", "upstream", "l1", 'a->\\"b\\\\', "5"),
            series("received", "upstream", "l2", 'a->\\"b\\\\', "1.5e+03"),
            series("sent", "upstream", "l1", 'a->\\"b\\\\', "4"),
            series("sent", "downstream", "l1", "c", "7"),
            "go_goroutines 12",
        )
    )

    assert byte_counters(page) == {
        ('a->"b\\', Direction.UPSTREAM): ByteCounters(received_bytes=1505, sent_bytes=4),
        ("c", Direction.DOWNSTREAM): ByteCounters(received_bytes=0, sent_bytes=7),
    }


def test_a_toxic_with_a_value_below_zero_is_refused_at_birth() -> None:
    """The message names the value."""
    with pytest.raises(PlanError, match="latency_ms=-1 of toxic latency is below 0"):
        LatencyToxic(latency_ms=-1)
