"""Where, and of what, the parts of one run are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.environment.choice import BackendChoice
from harness.environment.layout import Layout
from harness.environment.nats.server import ServerTls
from harness.environment.processes.supervisor import Supervisor
from harness.environment.wiring import RunWiring

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every part of a run may ask when it is built.

    supervisor: runs processes, keeps the record of all events, and knows the owner label. variables: what every process
    of the run is born with. tls: the broker's own certificate, None where it speaks plainly. credentials_path: a
    private file with the way to the broker.
    """

    choice: BackendChoice
    layout: Layout
    wiring: RunWiring
    supervisor: Supervisor
    variables: Mapping[str, str]
    log_directory: Path
    progress: Progress
    tls: ServerTls | None
    credentials_path: Path

    def log_path(self, role: str) -> Path:
        """`<run>/logs/<role>.log`."""
        return self.log_directory / f"{role}.log"
