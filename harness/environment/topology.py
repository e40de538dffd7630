"""The shape of a system under test: its processes and the network links between them.

This is what an adapter writes down and what every backend carries out. It says nothing of how a process is started
inside a backend, nor which ports it gets: that is decided per run and handed to `ProcessSpec.environment` as `Wiring`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.environment.nats.access import BrokerAccess
from harness.errors import PlanError

BROKER = "nats"
"""The role name of the broker, an endpoint like any process."""

DATABASE = "postgres"
"""The role name of the PostgreSQL server. Links to it exist in runs that have one."""

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A named way between two processes, with a proxy on it.

    client: role of who connects (`clients` for the workload). server: role of who listens: a process, `nats`, or
    `postgres`, whose links are left out of runs without a PostgreSQL server.
    """

    client: str
    server: str

    def __post_init__(self) -> None:
        for role in (self.client, self.server):
            if not _ROLE.fullmatch(role):
                raise PlanError(
                    f"link role {role!r} is not a lower-case word ([a-z][a-z0-9_-]*, at most 32 characters)"
                )

    @property
    def name(self) -> str:
        """`payments->nats`."""
        return f"{self.client}->{self.server}"


class Wiring(Protocol):
    """What a run tells a process about the world, so that it can be configured."""

    @property
    def spool_directory(self) -> Path:
        """Where a process may leave spans that outlive it."""

    @property
    def otlp_url(self) -> str:
        """Base URL of the OTLP/HTTP receiver (`http://127.0.0.1:4318`)."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def replicas(self) -> int:
        """How many servers can hold each stream: 1, or 3 in a cluster."""

    def listen(self, role: str) -> str:
        """`host:port` where this role itself listens."""

    def via(self, link: str) -> str:
        """`host:port` of the proxy on this link (`payments->provider`)."""

    def broker(self, client: str) -> BrokerAccess:
        """How this role gets to the broker, through the proxies of its link (`payments->nats`), and is let in."""

    def database(self, client: str) -> str | None:
        """URL of this role's own PostgreSQL database, through the proxy of its link; None in a run without."""

    def secret(self, name: str) -> str:
        """A word that only this run knows, always the same under one name: what an admin endpoint asks for, say."""

    def directory(self, role: str) -> Path:
        """A directory that belongs to this role alone, kept across restarts within the run, gone after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process of the system under test.

    argv: the command; the first element may be a name on PATH. Python processes start with `sys.executable`.
    environment: the variables it gets on top of the harness's own PATH, HOME and locale.
    ready_path: HTTP path that answers 200 once it can work, asked at its own listen address (not through a proxy).
    stop_grace_s: how long SIGTERM may take before it counts as stuck and is killed.
    start_within_s: how long it may take to become ready.
    """

    name: str
    argv: tuple[str, ...]
    environment: Callable[[Wiring], Mapping[str, str]]
    ready_path: str
    stop_grace_s: float = 15.0
    start_within_s: float = 20.0

    def __post_init__(self) -> None:
        if not _ROLE.fullmatch(self.name) or self.name in (BROKER, DATABASE):
            raise PlanError(f"process name {self.name!r} is not a lower-case word, or is a role of the environment's")
        if not self.argv:
            raise PlanError(f"process {self.name!r} has an empty argv: say which command starts it")
        if self.stop_grace_s <= 0 or self.start_within_s <= 0:
            raise PlanError(f"process {self.name!r} needs stop_grace_s and start_within_s above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All processes and links of one system under test."""

    processes: tuple[ProcessSpec, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        roles = [spec.name for spec in self.processes]
        if len(set(roles)) != len(roles):
            raise PlanError(f"two processes share a name in {roles}")
        for link in self.links:
            if link.server not in (*roles, BROKER, DATABASE):
                raise PlanError(
                    f"link {link.name!r} leads to {link.server!r}, "
                    f"which is neither a process nor {BROKER!r} nor {DATABASE!r}"
                )
