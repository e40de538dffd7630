"""Fixtures of the environment's tests: the real parts, by name, and a private temporary directory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.environment.choice import EXTERNAL, BackendChoice
from harness.environment.containers.docker_socket import DockerSocket
from harness.environment.containers.engine import find_engine
from harness.environment.nats.server import find_nats_server
from harness.environment.ports import PortLease
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.supervisor import Supervisor
from harness.environment.running import RunningEnvironment
from harness.environment.tests.backends import Open, ensure_had, run_of, somebody
from harness.environment.tests.containers import nats_here
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
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of this test alone, in which nothing may be left.

    Not below pytest's: as root that one is closed to everybody else, and PostgreSQL has to be somebody else.
    """
    tmp_path_factory.getbasetemp()  # lies where temporary files lie, which is about to change
    directory = Path(tempfile.mkdtemp(prefix="test-of-stormproof-"))
    directory.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    shutil.rmtree(directory)


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


@pytest.fixture
async def choice(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BackendChoice]:
    """The backend that the test is parametrized with; `external` comes with somebody whose parts it uses."""
    name = request.param
    try:
        await ensure_had(BackendChoice() if name == EXTERNAL else BackendChoice(name=name))
    except EnvironmentFailedError as error:
        absent(request, f"backend {name}: {error}")
    if name != EXTERNAL:
        yield BackendChoice(name=name)
        return
    async with somebody(tmp_path / "somebody") as theirs:
        yield theirs.choice


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens an environment of two small processes, with this test's run directory."""

    def started(choice: BackendChoice) -> AbstractAsyncContextManager[RunningEnvironment]:
        return run_of(choice, tmp_path / "run")

    return started


@pytest.fixture
async def docker(request: pytest.FixtureRequest) -> DockerSocket:
    """The real engine."""
    if find_spec("testcontainers") is None:
        absent(request, "testcontainers is not installed: pip install 'stormproof[containers]'")
    try:
        return await find_engine()
    except EnvironmentFailedError as error:
        absent(request, str(error))
        raise


@pytest.fixture
async def image(docker: DockerSocket, nats_binary: Path) -> str:
    """The pinned broker's image."""
    return await nats_here(docker)
