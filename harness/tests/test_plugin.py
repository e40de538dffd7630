"""The pytest plugin does no harm where its extra is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
"""


def test_without_pytest_asyncio_only_live_run_fails_and_says_what_to_install(tmp_path: Path) -> None:
    """`pip install stormproof` brings the plugin's entry point into an environment with plain pytest."""
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")

    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST_ASYNCIO],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # Without autoload, or the entry point of pytest-asyncio would stumble over its own absence.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
    )

    assert "1 passed, 1 error" in finished.stdout, finished.stdout + finished.stderr
    assert 'live_run needs pytest-asyncio: pip install "stormproof[pytest]"' in finished.stdout
