"""What one run tells its processes: addresses, directories, seed, and the variables they are born with.

Promises: implements `topology.Wiring`; the same answers for the whole run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.environment.links import NetworkLink
from harness.errors import UsageError

# What a process needs of the harness's own surroundings. Everything else stays out, so that a run does not depend on
# whose shell started it.
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")
_PASSED_ON_PREFIX = "LC_"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWiring:
    """The wiring of one run."""

    spool_directory: Path
    otlp_url: str
    seed: int
    addresses: Mapping[str, str]
    links: Mapping[str, NetworkLink]
    scratch_directory: Path

    def listen(self, role: str) -> str:
        """`host:port` where this role itself listens."""
        try:
            return self.addresses[role]
        except KeyError:
            raise UsageError(f"no role {role!r} in this environment; there are {sorted(self.addresses)}") from None

    def via(self, link: str) -> str:
        """`host:port` of the proxy on this link."""
        try:
            return self.links[link].listen
        except KeyError:
            raise UsageError(f"no link {link!r} in this environment; there are {sorted(self.links)}") from None

    def directory(self, role: str) -> Path:
        """A directory of this role alone, in the scratch directory."""
        self.listen(role)
        directory = self.scratch_directory / role
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory


def base_variables(temporary: Path) -> dict[str, str]:
    """The variables every process of a run gets, before its own."""
    passed = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIX)
    }
    return {**passed, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
