"""The pytest plugin does no harm where nobody uses it, or where its extra is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import plugin
from harness.environment.choice import BACKENDS, EXTERNAL

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_PYTEST_ASYNCIO = """
import sys
sys.modules["pytest_asyncio"] = None  # importing it raises ImportError
import pytest
sys.exit(pytest.main(["-p", "harness.plugin", "-p", "no:cacheprovider", "-ra"]))
"""
TESTS = """
def test_of_somebody_else():
    pass


def test_of_a_live_run(live_run):
    pass


def test_of_a_client(jetstream):
    pass


def test_of_a_broker(nats_server):
    assert nats_server.is_running
"""
NOTHING_OF_OURS = """
import sys


def test_of_somebody_else():
    ours = {name for name in sys.modules if name.partition(".")[0] in {"harness", "system", "chaos", "scenarios"}}
    assert ours == {"harness", "harness.plugin", *(f"harness.fixtures{each}" for each in ("", ".asked", ".lending"))}
    dear = {"nats", "aiohttp", "asyncpg", "toxiproxy", "requests", "duckdb", "numpy", "opentelemetry", "testcontainers"}
    assert not dear & set(sys.modules)
"""


def test_without_pytest_asyncio_only_its_fixtures_fail_and_say_what_to_install(tmp_path: Path) -> None:
    """`pip install stormproof` brings the plugin's entry point into an environment with plain pytest."""
    finished = plain_pytest(tmp_path, TESTS, "-c", WITHOUT_PYTEST_ASYNCIO)

    assert "2 passed, 2 errors" in finished.stdout, finished.stdout + finished.stderr
    for name in ("live_run", "jetstream"):
        assert f'{name} needs pytest-asyncio: pip install "stormproof[pytest]"' in finished.stdout


def test_who_uses_no_fixture_pays_nothing(tmp_path: Path) -> None:
    """Neither the harness nor what it stands on is imported by somebody else's test run."""
    finished = plain_pytest(tmp_path, NOTHING_OF_OURS, "-m", "pytest", "-p", "harness.plugin", "-p", "no:cacheprovider")

    assert "1 passed" in finished.stdout, finished.stdout + finished.stderr


def test_backends_are_those_that_start_parts_of_their_own() -> None:
    """The plugin says them itself, because asking for them would import the harness."""
    assert tuple(name for name in BACKENDS if name != EXTERNAL) == plugin.BACKENDS


def plain_pytest(directory: Path, tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests in an environment where no plugin loads itself."""
    (directory / "test_it.py").write_text(tests, encoding="utf-8")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # Without autoload, or the entry point of pytest-asyncio would stumble over its own absence.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
    )
