"""The pytest plugin: real parts, and a real system under test, as fixtures.

Parts, each useful without the rest: `nats_server`, `nats_cluster`, `jetstream`, `toxiproxy`, `postgres`, `otlp`, and
`nats_server_factory` for more servers. They live as long as the session (each xdist worker is one) and are as new for
every test; `@pytest.mark.stormproof(fresh=True)` asks for new ones. The configured system: `system_under_test`,
`chaos_seed`, `run_directory`, `live_run` (the system, started; a test drives and judges it).

A part that cannot be had here skips the tests that need it, by name; with `--require-backends` the skip is a failure,
so that a CI run cannot be green because nothing ran.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.fixtures.asked import (
    FAILED,
    LIVE_RUN,
    MARKER,
    USED,
    absent,
    addresses_of,
    choice_of,
    is_kept_running,
    progress_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from harness.environment.choice import BackendChoice
    from harness.live_run import LiveRun
    from harness.runs import RunDirectory
    from harness.system_under_test import SystemUnderTest

pytest_plugins = ("harness.fixtures.lending",)

# The harness is imported inside the fixtures: the plugin is loaded by every pytest run on the machine it is installed
# on, and must cost nothing there.
# ruff: noqa: PLC0415

BACKENDS = ("embedded", "container", "cluster", "cluster-container")
"""Those that start parts of their own; whoever has running ones needs no fixture to find them."""

_SEED_BITS = 31


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("stormproof")
    group.addoption("--backend", choices=BACKENDS, default=BACKENDS[0], help="where the real parts run")
    group.addoption("--nats-version", metavar="V", default=None, help="a published nats-server, for example 2.12.4")
    group.addoption("--chaos-seed", type=int, default=None, metavar="N", help="seed of requests and fault programs")
    group.addoption("--runs-dir", type=Path, default=None, metavar="DIR", help="keep run directories and logs here")
    group.addoption("--keep-running", action="store_true", help="after a failed test leave its parts up, until Ctrl-C")
    group.addoption(
        "--require-backends", action="store_true", help="a missing broker, proxy or binary fails instead of skipping"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, and refuse a version that is none."""
    config.addinivalue_line("markers", f"{MARKER}(fresh=False): with fresh=True the parts of this test are new ones")
    if config.getoption("--nats-version") is not None:
        from harness.errors import UsageError

        try:
            choice_of(config)
        except UsageError as error:
            raise pytest.UsageError(f"--nats-version: {error}") from None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse `--keep-running` where nobody could look."""
    if session.config.getoption("--keep-running"):
        from harness.fixtures.keep_running import why_not

        reason = why_not(session.config)
        if reason is not None:
            raise pytest.UsageError(reason)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say the seed and the backend, when one was given."""
    seed = config.getoption("--chaos-seed")
    backend = config.getoption("--backend")
    said = [] if seed is None else [f"chaos seed {seed}"]
    said += [] if backend == BACKENDS[0] else [f"backend {backend}"]
    return f"stormproof: {', '.join(said)}" if said else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of its parts' logs to the report of a test that failed."""
    report = yield
    if report.failed and report.when != "teardown" and USED in item.stash:
        item.stash[FAILED] = report
        for name, part in item.stash[USED].items():
            report.sections.append((f"stormproof: the end of what {name} says", part.log_tail))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Keep a failed test's parts running, if asked to, before any fixture of the test ends."""
    if is_kept_running(item) and LIVE_RUN not in item.stash[USED]:
        from harness.fixtures.keep_running import wait_for_interrupt

        wait_for_interrupt(item, item.stash[FAILED], addresses_of(item))


@pytest.fixture(scope="session")
def system_under_test() -> SystemUnderTest:
    """Return the system that pyproject.toml names."""
    from harness.system_under_test import configured_system

    return configured_system()


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this test: `--chaos-seed`, or a fresh one, which a failure prints."""
    chosen = request.config.getoption("--chaos-seed")
    seed = secrets.randbits(_SEED_BITS) if chosen is None else int(chosen)
    request.node.add_report_section("setup", "stormproof", f"repeat it with --chaos-seed {seed}")
    return seed


@pytest.fixture
def run_directory(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    """Return a fresh run directory: under `--runs-dir`, or in the test's temporary directory."""
    from harness.runs import new_run

    directory = new_run(request.config.getoption("--runs-dir") or tmp_path / "runs", request.node.name[:60])
    request.node.add_report_section("setup", "stormproof", f"run directory {directory.path}")
    return directory


@pytest.fixture(scope="session")
def toxiproxy_binary(request: pytest.FixtureRequest) -> Path:
    """Return the real Toxiproxy's binary, built once if need be."""
    from harness.environment.toxiproxy.binary import find_or_build_toxiproxy
    from harness.errors import StormproofError

    try:
        return asyncio.run(find_or_build_toxiproxy(progress_of(request.config)))
    except StormproofError as error:
        absent(request, "toxiproxy", error)


@pytest.fixture(scope="session")
def _stormproof_backend(request: pytest.FixtureRequest) -> BackendChoice:
    from harness.errors import EnvironmentFailedError
    from harness.fixtures.presence import ensure_present

    choice = choice_of(request.config)
    try:
        asyncio.run(ensure_present(choice, progress_of(request.config)))
    except EnvironmentFailedError as error:
        absent(request, f"backend {choice.name}", error)
    return choice


try:
    import pytest_asyncio
except ImportError:
    # An extra, which a plain `pip install stormproof` does not bring; the plugin is loaded all the same.
    @pytest.fixture(name="live_run")
    def live_run_without_pytest_asyncio() -> None:
        """Fail by name, and say what to install."""
        pytest.fail('live_run needs pytest-asyncio: pip install "stormproof[pytest]"', pytrace=False)

else:

    @pytest_asyncio.fixture
    async def live_run(
        request: pytest.FixtureRequest,
        system_under_test: SystemUnderTest,
        run_directory: RunDirectory,
        chaos_seed: int,
        _stormproof_backend: BackendChoice,
    ) -> AsyncIterator[LiveRun]:
        """Start the configured system behind real proxies; end it, whatever the test did."""
        from harness.fixtures.live_system import LiveSystem
        from harness.live_run import live_run as start

        async with start(system_under_test, run_directory, seed=chaos_seed, choice=_stormproof_backend) as run:
            system = LiveSystem(run.environment)
            used = request.node.stash.setdefault(USED, {})
            used[LIVE_RUN] = system
            yield run
            # Here, and not before all fixtures end: the receiver of the system's spans lives on this loop.
            if is_kept_running(request.node) and (system.is_running or len(used) > 1):
                from harness.fixtures.keep_running import wait_for_interrupt_async

                await wait_for_interrupt_async(request.node, request.node.stash[FAILED], addresses_of(request.node))
