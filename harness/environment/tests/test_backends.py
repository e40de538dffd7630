"""The conformance suite: whatever the parts stand on, a run can rely on the same things.

Each test runs on every backend. One that cannot be had here is skipped by name, or fails with `--require-backends`.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import nats.errors
import nats.js.errors
import pytest

from harness.environment.choice import BACKENDS, BackendChoice
from harness.environment.nats.access import BrokerAccess
from harness.environment.ports import split_address, why_taken
from harness.environment.probes import probe_http, probe_nats
from harness.environment.running import RunningEnvironment
from harness.environment.tests.backends import (
    CUT_OFF_S,
    OWNED,
    PUBLISH_WITHIN_S,
    Open,
    containers_of,
    files_holding,
    killed_inside,
    messages_kept,
    seen_with,
    stream_on,
)
from harness.environment.tests.clients import STREAM, let_in, published
from harness.environment.tests.small_system import owned_by, scratch_directories, wait_until
from harness.environment.toxiproxy.toxics import Direction, TimeoutToxic
from harness.records import ProcessEvent

pytestmark = pytest.mark.usefixtures("temporary")

on_every_backend = pytest.mark.parametrize("choice", BACKENDS, indirect=True)
on_every_own_backend = pytest.mark.parametrize("choice", OWNED, indirect=True)


def secrets_of(environment: RunningEnvironment) -> list[bytes]:
    """Everything that nobody else may read."""
    password = environment.broker.password
    assert password is not None
    return [password.encode()]


@on_every_backend
async def test_everything_answers_inside_and_nothing_is_left_after(
    choice: BackendChoice, opened: Open, temporary: Path
) -> None:
    """No process, no container, no port, no file but those of the run directory."""
    before = sorted(owned_by(os.getpid())), sorted(scratch_directories(temporary))
    async with opened(choice) as environment:
        assert {link: await environment.probe(link) for link in environment.links} == dict.fromkeys(environment.links)
        assert all(environment.is_running(role) for role in (*environment.nodes, "toxiproxy", "orders", "payments"))
        assert environment.backend == choice.name
        theirs = {environment.address(role) for role in environment.foreign}
        listening = {*environment.wiring.addresses.values(), *(link.listen for link in environment.links.values())}

    assert (sorted(owned_by(os.getpid())), sorted(scratch_directories(temporary))) == before
    assert not choice.is_containers or containers_of(os.getpid()) == []
    taken = {address: why_taken(*split_address(address)) for address in listening - theirs}
    assert {address: why for address, why in taken.items() if why is not None} == {}


@on_every_backend
async def test_a_message_goes_through_the_proxies_into_a_stream_and_back(choice: BackendChoice, opened: Open) -> None:
    """As the system's processes get it: through their own links, with the run's credentials."""
    async with opened(choice) as environment, let_in(environment.wiring.broker("orders")) as orders:
        jetstream = orders.jetstream()
        await stream_on(jetstream, environment)
        ack = await jetstream.publish("orders.created", b"o-1", headers={"Nats-Msg-Id": "o-1"})
        again = await jetstream.publish("orders.created", b"o-1", headers={"Nats-Msg-Id": "o-1"})
        async with let_in(environment.wiring.broker("payments")) as payments:
            pulled = await payments.jetstream().pull_subscribe("orders.created", durable="payments")
            (message,) = await pulled.fetch(1, timeout=PUBLISH_WITHIN_S)
            await message.ack_sync(timeout=PUBLISH_WITHIN_S)

    assert (ack.stream, ack.seq, again.duplicate) == (STREAM, 1, True)
    assert message.data == b"o-1"


@on_every_backend
@pytest.mark.parametrize("link", ["payments->nats", "orders->payments"])
async def test_a_partition_cuts_one_link_and_its_heal_mends_it(choice: BackendChoice, opened: Open, link: str) -> None:
    """The neighbour's way stays open meanwhile."""
    async with opened(choice) as environment:
        toxiproxy, members = environment.toxiproxy, environment.links_of(link)
        for member in members:
            for way in Direction:
                await toxiproxy.add_toxic(member.proxy, TimeoutToxic(), direction=way)
        cut = [await environment.probe(member.name, timeout_s=CUT_OFF_S) for member in members]
        neighbour = await environment.probe("orders->nats")
        for member in members:
            for name in await toxiproxy.toxics(member.proxy):
                await toxiproxy.remove_toxic(member.proxy, name)
        healed = await environment.probe(link)

    assert None not in cut
    assert (neighbour, healed) == (None, None)


@on_every_backend
async def test_a_cut_link_stops_messages_until_it_is_healed(choice: BackendChoice, opened: Open) -> None:
    """It is really the proxies that messages go through: no server tells a client of a way around."""
    async with opened(choice) as environment, let_in(environment.wiring.broker("orders")) as orders:
        jetstream = orders.jetstream()
        await stream_on(jetstream, environment)
        for member in environment.links_of("orders->nats"):
            await environment.toxiproxy.disable(member.proxy)
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await jetstream.publish("orders.created", b"lost", timeout=CUT_OFF_S)
        for member in environment.links_of("orders->nats"):
            await environment.toxiproxy.enable(member.proxy)
        stream = await published(jetstream, "found")

    assert stream == STREAM


@on_every_own_backend
async def test_what_was_acknowledged_survives_a_kill_of_every_server(choice: BackendChoice, opened: Open) -> None:
    """The stores stay for the whole run, whatever happens to those that write them."""
    async with opened(choice) as environment, let_in(environment.broker) as client:
        jetstream = client.jetstream(timeout=PUBLISH_WITHIN_S)
        await stream_on(jetstream, environment)
        for number in range(20):
            await jetstream.publish("orders.created", str(number).encode())
        for node in environment.nodes:
            await environment.kill(node)
        running = [environment.is_running(node) for node in environment.nodes]
        for node in environment.nodes:
            await environment.start(node)
        for link in environment.links:
            assert await environment.probe(link) is None
        kept = await messages_kept(jetstream)

    assert not any(running)
    assert kept == 20


@on_every_own_backend
async def test_the_leader_of_a_stream_is_a_role_and_can_be_killed(choice: BackendChoice, opened: Open) -> None:
    """One experiment, `leader:ORDERS`, for one server and for three."""
    async with opened(choice) as environment, let_in(environment.broker) as client:
        jetstream = client.jetstream(timeout=PUBLISH_WITHIN_S)
        await stream_on(jetstream, environment)
        await jetstream.publish("orders.created", b"before")
        leader = await environment.resolve(f"leader:{STREAM}")
        await environment.kill(leader)
        await environment.start(leader)
        again = await environment.resolve(f"leader:{STREAM}")
        await published(jetstream, "after")
        kept = await messages_kept(jetstream)

    assert leader in environment.nodes
    assert again in environment.nodes
    assert kept == 2


@on_every_own_backend
@pytest.mark.parametrize("role", ["orders", "node", "toxiproxy"])
async def test_a_paused_role_is_silent_until_it_is_resumed(choice: BackendChoice, opened: Open, role: str) -> None:
    """Its connections stay open meanwhile: nobody is told."""
    async with opened(choice) as environment:
        role = environment.nodes[0] if role == "node" else role
        await environment.pause(role)
        silent = await why_silent(environment, role)
        still = environment.is_running(role)
        await environment.resume(role)
        await environment.wait_ready(role)
        answers = [await environment.probe(link) for link in environment.links]

    assert silent is not None
    assert still
    assert answers == [None] * len(answers)


@on_every_own_backend
async def test_whatever_happens_to_a_part_is_on_record(choice: BackendChoice, opened: Open) -> None:
    """In one record and in the same words, whoever runs it."""
    async with opened(choice) as environment:
        node = environment.nodes[-1]
        await environment.kill(node)
        await environment.start(node)
        await environment.pause(node)
        await environment.resume(node)
        await environment.restart("toxiproxy")

    events = environment.supervisor.events
    assert words(events, node)[:8] == ["started", "ready", "killed", "exited", "started", "ready", "paused", "resumed"]
    assert words(events, "toxiproxy")[:6] == ["started", "ready", "stopping", "exited", "started", "ready"]
    assert words(events, "orders") == ["started", "ready", "stopping", "exited"]
    assert not [event for event in events if event.event == "exited" and event.detail.startswith("unexpected")]
    assert [event.at_ns for event in events] == sorted(event.at_ns for event in events)


@on_every_own_backend
async def test_a_part_that_dies_by_itself_is_on_record_as_unexpected(choice: BackendChoice, opened: Open) -> None:
    """It makes the run UNKNOWN, so it must not look like a fault of ours."""
    async with opened(choice) as environment:
        node = environment.nodes[0]
        pid = next(event.pid for event in environment.supervisor.events if event.process == node)
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: not environment.is_running(node), what=f"the end of {node}")
        await environment.start(node)
        assert await environment.probe("orders->nats") is None

    (end,) = [event for event in environment.supervisor.events if event.detail.startswith("unexpected")]
    assert (end.process, end.pid, end.event) == (node, pid, "exited")
    assert "signal SIGKILL" in end.detail


@on_every_backend
async def test_wrong_credentials_and_none_are_refused(choice: BackendChoice, opened: Open) -> None:
    """On every server, and through every proxy."""
    async with opened(choice) as environment:
        access = environment.broker
        right = [await seen_with(access, url) for url in access.urls]
        wrong = [await seen_with(replace(access, password="guess"), url) for url in access.urls]  # noqa: S106 - a wrong one
        nobody = [await seen_with(BrokerAccess(urls=access.urls), url) for url in access.urls]

    assert right == [None] * len(right)
    assert all("Authorization Violation" in str(seen) for seen in (*wrong, *nobody))


@on_every_backend
async def test_no_secret_is_in_the_run_directory_or_a_command_line(
    choice: BackendChoice, opened: Open, tmp_path: Path
) -> None:
    """Logs go into bug reports, and everybody on a machine can list its processes."""
    async with opened(choice) as environment:
        secrets = secrets_of(environment)
        for role in () if choice.is_external else (*environment.nodes, "toxiproxy"):
            await environment.restart(role)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in owned_by(os.getpid())]
        public = [
            path
            for path in environment.scratch_directory.rglob("*")
            if path.is_file() and path.stat().st_mode & 0o077 and any(s in path.read_bytes() for s in secrets)
        ]
        is_in_credentials = secrets[0] in environment.nats_credentials.read_bytes()

    assert is_in_credentials
    assert public == []
    assert not any(secret in command for secret in secrets for command in commands)
    assert files_holding(secrets, tmp_path / "run") == []


@on_every_own_backend
async def test_sigkill_of_the_harness_leaves_nothing(choice: BackendChoice, temporary: Path, tmp_path: Path) -> None:
    """The guardian outlives it for a moment."""
    pid = await killed_inside(choice, tmp_path / "run", temporary)

    await wait_until(lambda: owned_by(pid) == [] and scratch_directories(temporary) == [], what="the guardian's work")
    assert not choice.is_containers or containers_of(pid) == []


async def why_silent(environment: RunningEnvironment, role: str) -> str | None:
    """None when a role answers, asked where it hurts."""
    if role == "toxiproxy":
        return await environment.probe("orders->payments", timeout_s=CUT_OFF_S)
    if role in environment.nodes:
        return await probe_nats(environment.address(role), CUT_OFF_S, access=environment.broker)
    return await probe_http(environment.address(role), "/ready", CUT_OFF_S)


def words(events: tuple[ProcessEvent, ...], role: str) -> list[str]:
    """What happened to a role, in order."""
    return [event.event for event in events if event.process == role]
