"""What a backend can be asked for beside its name: TLS, PostgreSQL, another version of the broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.environment.choice import CLUSTER, CONTAINER, EMBEDDED, BackendChoice
from harness.environment.nats.versions import find_nats_server_version
from harness.environment.tests.backends import CUT_OFF_S, files_holding, run_of, seen_with, stream_on
from harness.environment.tests.clients import let_in
from harness.environment.tests.conftest import absent
from harness.environment.tests.small_system import small_process
from harness.environment.topology import DATABASE, Link, Topology
from harness.errors import EnvironmentFailedError

OTHER_VERSION = "2.12.4"

pytestmark = pytest.mark.usefixtures("temporary")


@pytest.mark.parametrize("choice", [EMBEDDED, CONTAINER, CLUSTER], indirect=True)
async def test_with_tls_the_broker_takes_nothing_else(choice: BackendChoice, tmp_path: Path) -> None:
    """Certificates of the run's own, valid for its proxies; who speaks plainly is not served."""
    async with run_of(replace(choice, tls=True), tmp_path / "run") as environment:
        assert [await environment.probe(link) for link in environment.links] == [None] * len(environment.links)
        plain = replace(environment.broker, urls=tuple(url.replace("tls", "nats") for url in environment.broker.urls))
        seen = [await seen_with(plain, url) for url in plain.urls]
        async with let_in(environment.wiring.broker("orders")) as client:
            await stream_on(client.jetstream(), environment)
            ack = await client.jetstream().publish("orders.created", b"secret")

    assert None not in seen
    assert ack.seq == 1


@pytest.mark.parametrize("choice", [EMBEDDED, CONTAINER], indirect=True)
async def test_with_postgres_every_client_has_a_database_behind_a_proxy(
    choice: BackendChoice, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What one wrote survives a kill, and a cut link is cut."""
    asyncpg = pytest.importorskip("asyncpg")
    topology = Topology(
        processes=(small_process("orders"), small_process("payments")),
        links=(Link(client="orders", server=DATABASE), Link(client="payments", server=DATABASE)),
    )
    try:
        async with run_of(replace(choice, postgres=True), tmp_path / "run", topology) as environment:
            url = environment.wiring.database("orders")
            assert url is not None
            connection = await asyncpg.connect(url)
            await connection.execute("CREATE TABLE orders (id text PRIMARY KEY)")
            await connection.execute("INSERT INTO orders VALUES ('o-1')")
            database = await connection.fetchval("SELECT current_database()")
            connection.terminate()
            await environment.kill(DATABASE)
            dead = await environment.probe("orders->postgres", timeout_s=CUT_OFF_S)
            await environment.start(DATABASE)
            connection = await asyncpg.connect(url)
            kept = await connection.fetchval("SELECT count(*) FROM orders")
            await connection.close()
            secrets = [url.partition("//")[2].partition("@")[0].partition(":")[2].encode()]
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(url.replace(secrets[0].decode(), "guess"))
    except EnvironmentFailedError as error:
        if "PostgreSQL" in str(error) and "pip install" in str(error):
            absent(request, str(error))
        raise

    assert (database, kept) == ("orders", 1)
    assert dead is not None
    assert files_holding(secrets, tmp_path / "run") == []


@pytest.mark.parametrize("choice", [EMBEDDED], indirect=True)
async def test_the_broker_is_of_the_version_that_was_asked_for(
    choice: BackendChoice, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As the server itself says, and not the pinned one."""
    try:
        await find_nats_server_version(OTHER_VERSION)
    except EnvironmentFailedError as error:
        absent(request, str(error))
    async with (
        run_of(replace(choice, nats_version=OTHER_VERSION), tmp_path / "run") as environment,
        let_in(environment.broker) as client,
    ):
        version = client.connected_server_version

    assert f"{version.major}.{version.minor}.{version.patch}" == OTHER_VERSION
