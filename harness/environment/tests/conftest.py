"""Fixtures of the environment's tests: the real parts, by name, and a private temporary directory."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from harness.environment.nats_server import find_nats_server
from harness.environment.ownership import Ownership
from harness.environment.ports import PortLease
from harness.environment.supervisor import Supervisor
from harness.errors import EnvironmentFailedError


def absent(request: pytest.FixtureRequest, what: str) -> None:
    """Skip by name, or fail where every backend is required."""
    if request.config.getoption("--require-backends", default=False):
        pytest.fail(f"--require-backends: {what}")
    pytest.skip(what)


@pytest.fixture
def nats_binary(request: pytest.FixtureRequest) -> Path:
    """The real nats-server."""
    try:
        return find_nats_server()
    except EnvironmentFailedError as error:
        absent(request, str(error))
        raise


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of this test alone, in which nothing may be left."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
async def ownership(temporary: Path) -> AsyncIterator[Ownership]:
    """A run's ownership, released after the test."""
    taken = Ownership.take("test", temporary=temporary)
    yield taken
    await taken.release()


@pytest.fixture
async def supervisor(ownership: Ownership) -> AsyncIterator[Supervisor]:
    """A supervisor that ends what it started."""
    async with Supervisor(owner_label=ownership.label) as started:
        yield started


@pytest.fixture
def lease(temporary: Path) -> Iterator[PortLease]:
    """Ports of this test."""
    with PortLease(directory=temporary / "stormproof-ports-test") as held:
        yield held
