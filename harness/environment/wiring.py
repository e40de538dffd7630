"""What one run tells its processes: addresses, directories, seed, credentials, and the variables they are born with.

Promises: implements `topology.Wiring`; the same answers for the whole run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from harness.environment.links import NetworkLink
from harness.environment.nats.access import BrokerAccess
from harness.environment.private_files import write_private
from harness.environment.topology import BROKER, DATABASE
from harness.errors import UsageError

# What a process needs of the harness's own surroundings. Everything else stays out, so that a run does not depend on
# whose shell started it.
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")
_PASSED_ON_PREFIX = "LC_"

SECRET_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWiring:
    """The wiring of one run.

    access: the broker, past every proxy. groups: the links behind each name that one may ask for. database_url: the
    PostgreSQL server, past every proxy, with its password; None in a run without one.
    """

    spool_directory: Path
    otlp_url: str
    seed: int
    addresses: Mapping[str, str]
    links: Mapping[str, NetworkLink]
    groups: Mapping[str, tuple[str, ...]]
    scratch_directory: Path
    access: BrokerAccess
    replicas: int = 1
    database_url: str | None = field(default=None, repr=False)

    def listen(self, role: str) -> str:
        """`host:port` where this role itself listens."""
        try:
            return self.addresses[role]
        except KeyError:
            raise UsageError(f"no role {role!r} in this environment; there are {sorted(self.addresses)}") from None

    def links_of(self, name: str) -> tuple[NetworkLink, ...]:
        """The links that a name stands for: one, or one for each server of a cluster."""
        try:
            return tuple(self.links[link] for link in self.groups[name])
        except KeyError:
            raise UsageError(f"no link {name!r} in this environment; there are {sorted(self.groups)}") from None

    def via(self, link: str) -> str:
        """`host:port` of the proxy on this link."""
        links = self.links_of(link)
        if len(links) > 1:
            raise UsageError(
                f"the link {link!r} leads to {len(links)} servers: ask for `broker({links[0].client!r})`, "
                f"or name one of {', '.join(each.name for each in links)}"
            )
        return links[0].listen

    def broker(self, client: str) -> BrokerAccess:
        """How this role gets to the broker, through its proxies, and is let in."""
        return self.access.at([link.listen for link in self.links_of(f"{client}->{BROKER}")])

    def database(self, client: str) -> str | None:
        """URL of this role's own database, through its proxy; None in a run without PostgreSQL."""
        if self.database_url is None:
            return None
        server = urlsplit(self.database_url)
        login = server.netloc.rpartition("@")[0]
        return urlunsplit((server.scheme, f"{login}@{self.via(f'{client}->{DATABASE}')}", f"/{client}", "", ""))

    def secret(self, name: str) -> str:
        """A word of this run's own; it stands in `<name>.secret` in the scratch directory, for this user alone."""
        path = self.scratch_directory / f"{name}.secret"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(SECRET_BYTES))
        return path.read_text()

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
