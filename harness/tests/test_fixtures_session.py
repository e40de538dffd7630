"""What a session keeps for its tests, and what it does when that cannot be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from harness.environment.choice import CLUSTER, CLUSTER_CONTAINER, CONTAINER, EMBEDDED, BackendChoice
from harness.environment.host import ProcessHost
from harness.environment.processes.supervised import Command
from harness.environment.run_site import Site
from harness.errors import EnvironmentFailedError
from harness.fixtures.family import Order, PartAbsentError, standing
from harness.fixtures.nats_server import RunningNats, nats_server
from harness.fixtures.session import SessionParts


@pytest.fixture
def said() -> list[str]:
    """What the session says of its progress."""
    return []


@pytest.fixture
def session(said: list[str]) -> Iterator[SessionParts]:
    """A session of this test alone."""
    with SessionParts(BackendChoice(), runs_directory=None, progress=said.append) as parts:
        yield parts


def test_a_part_that_cannot_be_made_as_new_is_replaced(session: SessionParts, said: list[str]) -> None:
    """Somebody else took its port while it was dead."""
    with session.lend("nats_server", session.single, nats_server) as server:
        before = server.address
        server.kill()
    host, _, port = before.rpartition(":")

    with (
        socket.create_server((host, int(port))),
        session.lend("nats_server", session.single, nats_server) as server,
    ):
        assert server.address != before
        assert server.is_running

    assert any(line.startswith("nats_server cannot be made as new and is replaced: ") for line in said)


def test_what_is_absent_is_looked_for_once(session: SessionParts) -> None:
    """The second test must not wait for a build that fails again; another version is another matter."""
    asked: list[str | None] = []

    def family(order: Order) -> AbstractAsyncContextManager[RunningNats]:
        asked.append(order.choice.nats_version)
        raise PartAbsentError("no such thing")

    for version in ("2.12.4", "2.12.4", "2.12.3"):
        with (
            pytest.raises(PartAbsentError, match="no such thing"),
            session.lend("nats_server", BackendChoice(nats_version=version), family),
        ):
            pytest.fail("it was lent")

    assert asked == ["2.12.4", "2.12.3"]


def test_a_part_that_was_started_and_died_is_broken_and_not_absent(session: SessionParts) -> None:
    """A skip would hide it."""

    def family(order: Order) -> AbstractAsyncContextManager[RunningNats]:
        async def begin(site: Site, host: ProcessHost) -> RunningNats:
            await host.start(Command(name="broken", argv=("false",), environment={}, log_path=site.log_path("broken")))
            await host.wait_ready("broken", never, within_s=10)
            raise AssertionError("it was ready")

        return standing(order, begin)

    with (
        pytest.raises(EnvironmentFailedError, match="ended with exit code 1 before it was ready") as caught,
        session.lend("broken", session.single, family),
    ):
        pytest.fail("it was lent")

    assert not isinstance(caught.value, PartAbsentError)


def test_logs_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    """And after the end of the session."""
    with (
        SessionParts(BackendChoice(), runs_directory=tmp_path, progress=print) as parts,
        parts.lend("nats_server", parts.single, nats_server),
    ):
        pass

    (log,) = tmp_path.glob("fixtures-*/*-nats_server/logs/nats.log")
    assert "Server is ready" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("asked", "single", "cluster"),
    [
        (EMBEDDED, EMBEDDED, CLUSTER),
        (CLUSTER, EMBEDDED, CLUSTER),
        (CONTAINER, CONTAINER, CLUSTER_CONTAINER),
        (CLUSTER_CONTAINER, CONTAINER, CLUSTER_CONTAINER),
    ],
)
def test_one_backend_says_what_one_server_and_three_stand_on(asked: str, single: str, cluster: str) -> None:
    """`nats_server` is one server everywhere, `nats_cluster` three."""
    parts = SessionParts(BackendChoice(name=asked, nats_version="2.12.4"), runs_directory=None, progress=print)

    assert parts.single == BackendChoice(name=single, nats_version="2.12.4")
    assert parts.cluster == BackendChoice(name=cluster, nats_version="2.12.4")


async def never() -> str:
    """A probe that never succeeds."""
    return "not yet"
