"""The pytest plugin: a real system under test as a fixture.

Options: `--chaos-seed`, `--runs-dir`, `--require-backends`. Fixtures: `system_under_test` (the configured one),
`chaos_seed`, `run_directory`, `toxiproxy_binary`, `live_run` (the system, started; a test drives and judges it).

A part that cannot be had here skips the tests that need it, by name; with `--require-backends` the skip is a failure,
so that a CI run cannot be green because nothing ran.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.live_run import LiveRun
    from harness.runs import RunDirectory
    from harness.system_under_test import SystemUnderTest

# The harness is imported inside the fixtures: the plugin is loaded by every pytest run on the machine it is installed
# on, and must cost nothing there.

_SEED_BITS = 31


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("stormproof")
    group.addoption("--chaos-seed", type=int, default=None, metavar="N", help="seed of requests and fault programs")
    group.addoption("--runs-dir", type=Path, default=None, metavar="DIR", help="keep run directories here")
    group.addoption(
        "--require-backends", action="store_true", help="a missing broker, proxy or binary fails instead of skipping"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say the seed, when one was given."""
    seed = config.getoption("--chaos-seed")
    return None if seed is None else f"stormproof: chaos seed {seed}"


@pytest.fixture(scope="session")
def system_under_test() -> SystemUnderTest:
    """Return the system that pyproject.toml names."""
    from harness.system_under_test import configured_system  # noqa: PLC0415 - see the top of this module

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
    from harness.runs import new_run  # noqa: PLC0415 - see the top of this module

    directory = new_run(request.config.getoption("--runs-dir") or tmp_path / "runs", request.node.name[:60])
    request.node.add_report_section("setup", "stormproof", f"run directory {directory.path}")
    return directory


@pytest.fixture(scope="session")
def toxiproxy_binary(request: pytest.FixtureRequest) -> Path:
    """Return the real Toxiproxy's binary, built once if need be."""
    from harness.environment.toxiproxy_binary import find_or_build_toxiproxy  # noqa: PLC0415 - see the top
    from harness.errors import StormproofError  # noqa: PLC0415 - see the top

    try:
        return asyncio.run(find_or_build_toxiproxy(print))
    except StormproofError as error:
        if request.config.getoption("--require-backends"):
            pytest.fail(f"toxiproxy is required and cannot be had: {error}")
        pytest.skip(f"toxiproxy cannot be had: {error}")


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
        system_under_test: SystemUnderTest,
        run_directory: RunDirectory,
        chaos_seed: int,
        toxiproxy_binary: Path,  # noqa: ARG001 - asked for so that its absence skips by name
    ) -> AsyncIterator[LiveRun]:
        """Start the configured system behind real proxies; end it, whatever the test did."""
        from harness.live_run import live_run as start  # noqa: PLC0415 - see the top of this module

        async with start(system_under_test, run_directory, seed=chaos_seed) as run:
            yield run
