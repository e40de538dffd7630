"""What every backend gives for a topology: running parts, their addresses, and a hold on them.

`opening.open_environment` is an async context manager that yields an `Environment`, whichever backend was chosen; the
callers (fault, workload, collection) know this interface only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from harness.environment.links import NetworkLink
from harness.environment.nats.access import BrokerAccess
from harness.environment.processes.supervisor import Supervisor
from harness.environment.topology import Topology, Wiring
from harness.environment.toxiproxy.client import ToxiproxyClient


class Environment(Protocol):
    """A running system under test with its broker and a proxy on every link."""

    @property
    def topology(self) -> Topology:
        """What was started."""

    @property
    def backend(self) -> str:
        """The name of the backend."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The roles of the broker's servers: `nats`, or `nats-1` to `nats-3`."""

    @property
    def foreign(self) -> frozenset[str]:
        """The roles that are somebody's own: nothing is done to them."""

    @property
    def supervisor(self) -> Supervisor:
        """Owner of the system's processes, and the record of what happened to all parts."""

    @property
    def toxiproxy(self) -> ToxiproxyClient:
        """The client of the proxies' API."""

    @property
    def toxiproxy_url(self) -> str:
        """Base URL of that API, for other clients."""

    @property
    def broker(self) -> BrokerAccess:
        """The way to the broker, past every proxy: for the harness's own use."""

    @property
    def nats_url(self) -> str:
        """The first server's URL, past every proxy and without credentials."""

    @property
    def nats_monitoring_url(self) -> str | None:
        """The first server's HTTP monitoring; None where the broker is somebody's own."""

    @property
    def nats_credentials(self) -> Path:
        """A file that only this user can read: the variables by which one gets to the broker and is let in."""

    @property
    def postgres_url(self) -> str | None:
        """The PostgreSQL server, past every proxy and with its password; None in a run without one."""

    @property
    def links(self) -> Mapping[str, NetworkLink]:
        """The links by name (`payments->provider`; in a cluster `payments->nats-1`)."""

    @property
    def wiring(self) -> Wiring:
        """What processes were told."""

    @property
    def spool_directory(self) -> Path:
        """Where processes leave spans that outlive them."""

    @property
    def scratch_directory(self) -> Path:
        """Stores, databases and sockets; gone after the run."""

    def address(self, role: str) -> str:
        """`host:port` where a process or part itself listens. Raises UsageError for another role."""

    def links_of(self, name: str) -> tuple[NetworkLink, ...]:
        """The links that a name stands for: `payments->nats` is three in a cluster. Raises UsageError for no link."""

    def ensure_may_harm(self, target: str, *, by: str) -> None:
        """Raise UsageError when no link or role is called so, or when it is somebody's own and not to be harmed.

        by: the kind of fault, as `--allow-fault` names it.
        """

    def labelled(self, variables: Mapping[str, str]) -> dict[str, str]:
        """These variables and the owner label, for a process of the harness's own that must not outlive the run."""

    async def resolve(self, role: str) -> str:
        """The role itself, or for `leader:ORDERS` the role of the server that leads this stream now.

        Raises UsageError for another role, EnvironmentFailedError when nobody leads.
        """

    def is_running(self, role: str) -> bool:
        """Whether a role runs now."""

    async def start(self, role: str) -> None:
        """Start a role that does not run and wait until it is ready."""

    async def stop(self, role: str) -> bool:
        """Stop a role gracefully; whether it ended within its grace."""

    async def kill(self, role: str) -> None:
        """SIGKILL a role and wait for its end."""

    async def pause(self, role: str) -> None:
        """Stop a role in its tracks; its connections stay open and silent."""

    async def resume(self, role: str) -> None:
        """Let a paused role go on; `wait_ready` says when it serves again."""

    async def restart(self, role: str) -> None:
        """Stop a role gracefully when it runs, start it, and wait until it is ready."""

    async def wait_ready(self, role: str) -> None:
        """Wait until a started role is ready, for example after `resume`."""

    async def stop_processes(self) -> None:
        """Stop the system's processes gracefully, in topology order; broker and proxies stay for the collection."""

    async def probe(self, link: str, *, timeout_s: float = ...) -> str | None:
        """None when the server really answers through this link (each of them, in a cluster), else what was seen."""
