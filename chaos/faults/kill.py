"""Kill: a process dies as by SIGKILL, and is started again when the fault heals.

What it had in memory is gone; what it had written to files is not (that would be a power cut).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from chaos.faults.fault import Grip

if TYPE_CHECKING:
    from harness.environment.backend import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Kill one process or part. process: its role (`payments`), or `leader:ORDERS` for who leads that stream then."""

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
        environment.ensure_may_harm(self.process, by=self.name)
        return KilledProcess(environment=environment, process=self.process)


@dataclass(slots=True, kw_only=True)
class KilledProcess:
    """A process that is being killed. process: as the fault names it; `_role` is who that was."""

    environment: Environment
    process: str
    _role: str | None = field(default=None, init=False)
    _killed: int = field(default=0, init=False)

    async def inject(self) -> None:
        """Send SIGKILL and see it exit."""
        self._role = await self.environment.resolve(self.process)
        await self.environment.kill(self._role)
        self._killed = 1

    async def heal(self) -> None:
        """Start it again and see it ready."""
        if self._role is None:
            return
        if self.environment.is_running(self._role):
            await self.environment.wait_ready(self._role)
        else:
            await self.environment.start(self._role)

    async def grip(self) -> Grip:
        """One process, or none when it was dead already; and which, when only the run could tell."""
        return Grip(
            caught=self._killed, unit="processes" if self._role == self.process else f"processes ({self._role})"
        )
