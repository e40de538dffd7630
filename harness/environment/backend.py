"""What every backend gives for a topology: running parts, their addresses, and a hold on them.

A backend is an async context manager that yields an `Environment`; the callers (fault, workload, collection) know this
interface only. `embedded` is the first; container, cluster and external ones can follow without a change here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from harness.environment.links import NetworkLink
from harness.environment.supervisor import Supervisor
from harness.environment.topology import Topology, Wiring
from harness.environment.toxiproxy import ToxiproxyClient


class Environment(Protocol):
    """A running system under test with its broker and a proxy on every link."""

    @property
    def topology(self) -> Topology:
        """What was started."""

    @property
    def supervisor(self) -> Supervisor:
        """Owner of the processes and their record."""

    @property
    def toxiproxy(self) -> ToxiproxyClient:
        """The client of the proxies' API."""

    @property
    def toxiproxy_url(self) -> str:
        """Base URL of that API, for other clients."""

    @property
    def nats_url(self) -> str:
        """The broker, past every proxy: for the harness's own use."""

    @property
    def nats_monitoring_url(self) -> str:
        """The broker's HTTP monitoring."""

    @property
    def links(self) -> Mapping[str, NetworkLink]:
        """The links by name (`payments->nats`)."""

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
        """`host:port` where a process, the broker or Toxiproxy itself listens. Raises UsageError for another role."""

    def labelled(self, variables: Mapping[str, str]) -> dict[str, str]:
        """These variables and the owner label, for a process of the harness's own that must not outlive the run."""

    async def start(self, role: str) -> None:
        """Start a role that does not run and wait until it is ready."""

    async def stop(self, role: str) -> bool:
        """Stop a role gracefully; whether it ended within its grace."""

    async def kill(self, role: str) -> None:
        """SIGKILL a role and wait for its end."""

    async def restart(self, role: str) -> None:
        """Stop a role gracefully when it runs, start it, and wait until it is ready."""

    async def wait_ready(self, role: str) -> None:
        """Wait until a started role is ready, for example after `resume`."""

    async def stop_processes(self) -> None:
        """Stop the system's processes gracefully, in topology order; broker and proxies stay for the collection."""

    async def probe(self, link: str, *, timeout_s: float = ...) -> str | None:
        """None when the server really answers through this link, else what was seen."""
