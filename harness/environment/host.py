"""What a part of a run asks of whatever runs it: the supervisor's processes, or a container engine.

A part (broker, proxies, database) is the same code on every host: it makes a `Command` and leaves the rest to its host.
`Supervisor` and `ContainerHost` are hosts; `SomebodysHost` refuses whatever would harm what is not ours.
"""

from __future__ import annotations

from typing import Protocol

from harness.environment.probes import Probe
from harness.environment.processes.supervised import Command


class ProcessHost(Protocol):
    """Runs commands by name, and puts on record whatever happens to them."""

    def is_running(self, name: str) -> bool:
        """Whether it runs now."""

    def log_tail(self, name: str) -> str:
        """The last lines of its log since its last start."""

    async def start(self, command: Command) -> int:
        """Start what is not running; returns its pid without waiting for anything.

        Raises EnvironmentFailedError when it cannot be started.
        """

    async def wait_ready(self, name: str, probe: Probe, *, within_s: float) -> None:
        """Wait until the probe returns None. Fails at once, with the log's tail, when what is asked ends first."""

    async def kill(self, name: str) -> None:
        """SIGKILL it and wait for its end."""

    async def pause(self, name: str) -> None:
        """Stop it in its tracks; its connections stay open and silent."""

    async def resume(self, name: str) -> None:
        """Let it go on."""

    async def stop(self, name: str, *, grace_s: float | None = None) -> bool:
        """Ask it to end, then SIGKILL it when the grace (the command's own by default) is over.

        Returns whether it ended within the grace; True as well when it had ended before.
        """

    async def close(self, *, grace_s: float) -> None:
        """End everything that still runs, all at once; nothing of the run is left on this host afterwards."""
