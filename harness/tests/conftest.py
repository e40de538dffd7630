"""An empty project of somebody else's, in which the package is installed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.environment.cache import CACHE_VARIABLE, cache_directory

# Now: pytester moves HOME, below which the cache lies by default, and nothing is to be built twice.
CACHE = cache_directory()

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
PLAIN = ("-ra", "-p", "no:cacheprovider", "-p", "no:locust", "-p", "no:schemathesis")
"""Without the plugins that only this repository has for itself: importing them takes 2 s each time."""

GONE_WITHIN_S = 20.0
LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """An empty project. temporary: its temporary directory, so that whatever its test runs leave is found."""

    pytester: pytest.Pytester
    temporary: Path
    is_complete: bool

    def test(self, source: str, *options: str) -> pytest.RunResult:
        """Run these tests as somebody does. A backend that is absent skips or fails the test that asks, by name."""
        self.pytester.makepyfile(test_it=source)
        result = self.run(*options)
        absences = [line for line in result.outlines if " cannot be had here: " in line and line.startswith("SKIPPED")]
        if absences and self.is_complete:
            pytest.fail(f"--require-backends: {absences[0]}")
        if absences:
            pytest.skip(absences[0])
        return result

    def run(self, *options: str) -> pytest.RunResult:
        """Run pytest on what is there."""
        return self.pytester.runpytest_subprocess(*PLAIN, *options)

    def leftovers(self) -> list[str]:
        """What is left of its test runs, once nothing is or after a while: processes, directories, port locks."""
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while (left := self._left()) and time.monotonic() < deadline_s:
            time.sleep(LOOK_EVERY_S)
        return left

    def _left(self) -> list[str]:
        # Everything that a session starts is told, in its environment or by its command, of a place in here.
        place = str(self.temporary).encode()
        left = [str(path) for path in self.temporary.iterdir() if path.name.startswith("stormproof-")]
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdecimal() and int(process.name) != os.getpid():
                    words = (process / "cmdline").read_bytes()
                    if place in words or place in (process / "environ").read_bytes():
                        left.append(f"process {process.name}: {words.decode(errors='replace')}")
        return left


@pytest.fixture
def project(
    request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """An empty project with a temporary directory of its own."""
    # Not below pytest's own: PostgreSQL, which is never root, could not enter that.
    temporary = Path(tempfile.mkdtemp(prefix="fixtures-", dir="/tmp"))
    temporary.chmod(0o711)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv(CACHE_VARIABLE, str(CACHE))
    pytester.makeini(INI)
    yield Project(
        pytester=pytester, temporary=temporary, is_complete=bool(request.config.getoption("--require-backends"))
    )
    shutil.rmtree(temporary)
