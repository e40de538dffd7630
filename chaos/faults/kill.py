"""Kill: a process dies as by SIGKILL, and is started again when the fault heals.

What it had in memory is gone; what it had written to files is not (that would be a power cut).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from chaos.faults.fault import Grip
from harness.environment.topology import BROKER
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.environment.backend import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Kill one process. process: its role (`payments`)."""

    process: str

    @property
    def name(self) -> str:
        """`kill`."""
        return "kill"

    @property
    def target(self) -> str:
        """The process."""
        return self.process

    def plan(self) -> dict[str, object]:
        """Return it as a JSON-able object."""
        return {"fault": self.name, **asdict(self)}

    def on(self, environment: Environment) -> KilledProcess:
        """Bind it to a running environment."""
        roles = {spec.name for spec in environment.topology.processes} | {BROKER}
        if self.process not in roles:
            known = ", ".join(sorted(roles))
            raise UsageError(f"there is no process {self.process!r} to kill; there is: {known}")
        return KilledProcess(environment=environment, process=self.process)


@dataclass(slots=True, kw_only=True)
class KilledProcess:
    """A process that is being killed."""

    environment: Environment
    process: str
    _killed: int = field(default=0, init=False)

    async def inject(self) -> None:
        """Send SIGKILL and see it exit."""
        await self.environment.kill(self.process)
        self._killed = 1

    async def heal(self) -> None:
        """Start it again and see it ready."""
        if self.environment.supervisor.is_running(self.process):
            await self.environment.wait_ready(self.process)
        else:
            await self.environment.start(self.process)

    async def grip(self) -> Grip:
        """One process, or none when it was dead already."""
        return Grip(caught=self._killed, unit="processes")
