"""Somebody's broker and Toxiproxy: used as they are, and left as they were."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.collection.broker import ADVISORIES, broker_records
from harness.environment.choice import EXTERNAL, BackendChoice
from harness.environment.external import external_access, is_left_over, proxy_prefix
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.processes.guardian import start_time_of
from harness.environment.processes.ownership import Owner
from harness.environment.tests.backends import Somebody, killed_inside, run_of, somebody
from harness.environment.tests.clients import let_in
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.errors import EnvironmentFailedError, UsageError

pytestmark = [
    pytest.mark.usefixtures("temporary", "toxiproxy_binary", "nats_binary"),
]

TOXIPROXY_URL = "http://127.0.0.1:8474"


@pytest.fixture
async def theirs(temporary: Path, toxiproxy_binary: Path, nats_binary: Path, tmp_path: Path) -> AsyncIterator[Somebody]:
    """Somebody with a broker, and a Toxiproxy with a proxy on it."""
    async with somebody(tmp_path / "somebody") as running:
        yield running


async def test_what_is_somebodys_own_is_left_as_it_was(theirs: Somebody, tmp_path: Path) -> None:
    """Their proxies, their streams, their processes; ours are gone."""
    async with let_in(theirs.access) as client:
        await client.jetstream().add_stream(name="THEIRS", subjects=["theirs"])
        await client.jetstream().publish("theirs", b"kept")
    async with run_of(theirs.choice, tmp_path / "run"):
        during = await theirs.toxiproxy.proxies()
    async with let_in(theirs.access) as client:
        kept = (await client.jetstream().stream_info("THEIRS")).state.messages

    assert len(during) == 4
    assert list(await theirs.toxiproxy.proxies()) == ["theirs"]
    assert kept == 1


async def test_proxies_that_a_killed_run_left_go_with_the_next_one(
    theirs: Somebody, temporary: Path, tmp_path: Path
) -> None:
    """Those of a run that lives stay beside another one's."""
    await killed_inside(theirs.choice, tmp_path / "killed", temporary)
    left = await theirs.toxiproxy.proxies()
    async with run_of(theirs.choice, tmp_path / "run"), run_of(theirs.choice, tmp_path / "other"):
        both = await theirs.toxiproxy.proxies()

    assert len(left) == 4
    assert len(both) == 7
    assert not set(left) & set(both) - {"theirs"}
    assert list(await theirs.toxiproxy.proxies()) == ["theirs"]


async def test_what_is_somebodys_own_is_not_harmed_unless_that_was_allowed_by_name(
    theirs: Somebody, tmp_path: Path
) -> None:
    """What is between two processes of ours needs nobody's leave."""
    async with run_of(theirs.choice, tmp_path / "run") as environment:
        environment.ensure_may_harm("orders->payments", by="partition")
        environment.ensure_may_harm("payments", by="kill")
        for target in ("payments->nats", "nats", "toxiproxy", "leader:ORDERS"):
            with pytest.raises(UsageError, match=f"kill on {target} would harm .* add --allow-fault kill"):
                environment.ensure_may_harm(target, by="kill")
        for harm in (environment.kill, environment.stop, environment.pause, environment.restart):
            with pytest.raises(EnvironmentFailedError, match="it is somebody's own"):
                await harm("nats")
        with pytest.raises(UsageError, match="no role 'moon'"):
            environment.ensure_may_harm("moon", by="kill")
    allowed = replace(theirs.choice, allowed_faults=frozenset({"partition"}))
    async with run_of(allowed, tmp_path / "run") as environment:
        environment.ensure_may_harm("payments->nats", by="partition")
        with pytest.raises(UsageError, match="--allow-fault kill"):
            environment.ensure_may_harm("nats", by="kill")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"nats_url": "nats://127.0.0.1:1"}, r"somebody's nats does not serve us (.|\n)* connection refused"),
        ({"toxiproxy_url": "http://127.0.0.1:1"}, "somebody's toxiproxy does not serve us"),
        ({"nats_url": "nats://shop:guess@{nats}"}, "Authorization Violation"),
    ],
)
async def test_parts_that_do_not_serve_us_are_one_sentence(
    theirs: Somebody, wrong: dict[str, str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3, nothing left, and no password in the sentence."""
    monkeypatch.setattr("harness.environment.external.ANSWER_WITHIN_S", 0.3)
    address = theirs.access.urls[0].removeprefix("nats://")
    choice = replace(theirs.choice, **{name: value.format(nats=address) for name, value in wrong.items()})  # type: ignore[arg-type]  # a table of wrong URLs

    with pytest.raises(EnvironmentFailedError, match=complaint) as failed:
        async with run_of(choice, tmp_path / "run"):
            pytest.fail("it must not come to this")

    assert "guess" not in str(failed.value)
    assert str(theirs.access.password) not in str(failed.value)
    assert list(await theirs.toxiproxy.proxies()) == ["theirs"]


async def test_a_toxiproxy_that_counts_no_bytes_is_refused(
    theirs: Somebody, toxiproxy_binary: Path, lease: PortLease, tmp_path: Path
) -> None:
    """What a partition swallowed could not be told, and every storm on it would end UNKNOWN."""
    (port,) = lease.take(1)
    child = await asyncio.create_subprocess_exec(
        toxiproxy_binary, "-port", str(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        choice = replace(theirs.choice, toxiproxy_url=f"http://{LOOPBACK}:{port}")
        with pytest.raises(EnvironmentFailedError, match=r"counts no bytes.* start it with -proxy-metrics"):
            async with run_of(choice, tmp_path / "run"):
                pytest.fail("it must not come to this")
        proxies = await ToxiproxyClient(f"{LOOPBACK}:{port}").proxies()
    finally:
        child.kill()
        await child.wait()

    assert proxies == {}


async def test_somebodys_toxiproxy_must_be_on_this_host(tmp_path: Path) -> None:
    """Its proxies listen where it runs, and the processes of the system run here."""
    choice = BackendChoice(name=EXTERNAL, nats_url="nats://127.0.0.1:1", toxiproxy_url="http://192.0.2.1:8474")

    with pytest.raises(UsageError, match=r"leads to 192\.0\.2\.1:8474: its proxies would listen there"):
        async with run_of(choice, tmp_path):
            pytest.fail("it must not come to this")


async def test_a_stream_that_somebody_has_written_to_is_not_taken_for_the_runs_own(theirs: Somebody) -> None:
    """The system would work on it, and be judged by it; an empty one, and a missing one, are as good as new."""
    async with let_in(theirs.access) as client:
        await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
        async with broker_records(theirs.access) as broker:
            await broker.ensure_unused(("ORDERS", "PAYMENTS"))
            await client.jetstream().publish("orders.created", b"")
            await client.jetstream().purge_stream("ORDERS")
            with pytest.raises(EnvironmentFailedError, match=r"up to sequence 1\).*`nats stream rm ORDERS`"):
                await broker.ensure_unused(("PAYMENTS", "ORDERS"))


async def test_the_stream_that_we_put_under_the_advisories_can_be_taken_away(theirs: Somebody) -> None:
    """Also one that is not there: a run may have been killed before it made it."""
    async with broker_records(theirs.access) as broker:
        await broker.capture_advisories()
        async with let_in(theirs.access) as client:
            names = [stream.config.name for stream in await client.jetstream().streams_info()]
            await broker.remove_advisories()
            await broker.remove_advisories()
            left = await client.jetstream().streams_info()

    assert names == [ADVISORIES]
    assert left == []


async def test_a_broker_that_does_not_let_the_harness_in_is_one_sentence_in_time(
    theirs: Somebody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py would try for ever; the reason is in the sentence, the password is not."""
    monkeypatch.setattr("harness.collection.broker._CONNECT_WITHIN_S", 0.3)

    with pytest.raises(
        EnvironmentFailedError, match=r"does not let the harness in .*Authorization Violation"
    ) as failed:
        async with broker_records(replace(theirs.access, password="guess")):  # noqa: S106 - a wrong one
            pytest.fail("it must not come to this")

    assert "guess" not in str(failed.value)


@pytest.mark.parametrize(
    ("url", "environ", "login"),
    [
        ("nats://h", {}, (None, None)),
        ("nats://h", {"NATS_USER": "u", "NATS_PASSWORD": "p"}, ("u", "p")),
        ("nats://shop:p%40ss@h", {"NATS_USER": "u", "NATS_PASSWORD": "p"}, ("shop", "p@ss")),
    ],
)
def test_credentials_come_from_the_url_else_from_variables(
    url: str, environ: dict[str, str], login: tuple[str | None, str | None]
) -> None:
    """The URL names the more particular of the two; a broker that lets everybody in needs neither."""
    choice = BackendChoice(name=EXTERNAL, nats_url=url, toxiproxy_url=TOXIPROXY_URL)

    access = external_access(choice, environ)

    assert (access.user, access.password) == login
    assert access.urls == ("nats://h:4222",)


@pytest.mark.parametrize(
    ("url", "environ", "complaint"),
    [
        ("nats://h", {"NATS_USER": "u"}, "NATS_PASSWORD is not set"),
        ("nats://h", {"NATS_PASSWORD": "p"}, "NATS_USER is not set"),
        ("tls://h", {"NATS_TLS_CA_FILE": "/nowhere/ca.pem"}, "NATS_TLS_CA_FILE=/nowhere/ca.pem is not a file"),
    ],
)
def test_half_a_login_is_refused(url: str, environ: dict[str, str], complaint: str) -> None:
    """Before anything is started."""
    choice = BackendChoice(name=EXTERNAL, nats_url=url, toxiproxy_url=TOXIPROXY_URL)

    with pytest.raises(UsageError, match=complaint):
        external_access(choice, environ)


def test_a_proxy_is_left_over_only_when_its_run_was_ours_and_is_dead() -> None:
    """Somebody's own, and those of a run that lives or that we cannot know, are left alone."""
    started = start_time_of(os.getpid())
    assert started is not None
    alive = Owner(pid=os.getpid(), started=started, run_id="run-1").label
    dead = Owner(pid=os.getpid(), started="1", run_id="run-1").label

    assert is_left_over(f"{proxy_prefix(dead)}payments->nats")
    assert not is_left_over(f"{proxy_prefix(alive)}payments->nats")
    assert not is_left_over(f"stormproof:another-namespace:{dead}:payments->nats")
    assert not is_left_over("payments->nats")
    assert not is_left_over("stormproof:ours by name only")
