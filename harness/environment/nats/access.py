"""How one gets to the broker and is let in: addresses, user, password, and whose certificates to trust.

Promises: the password is in no `repr` and no URL, so that it gets into no log or report by accident. Each run makes up
its own.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import PlanError

USER = "stormproof"
PASSWORD_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAccess:
    """A way to the broker.

    urls: one for each server, `nats://host:port`, or `tls://host:port` where TLS is a must. user, password: both or
    neither. ca_file: PEM file of the authority that signed the servers' certificates, None for the host's own.
    """

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.urls or any("@" in url for url in self.urls):
            raise PlanError("a broker is reached by at least one URL, none of which holds credentials")
        if (self.user is None) != (self.password is None):
            raise PlanError("a broker is told a user and a password, or neither")

    @property
    def url(self) -> str:
        """All URLs, separated by commas, as NATS_URL has them."""
        return ",".join(self.urls)

    @property
    def is_tls(self) -> bool:
        """Whether nothing is told to a server that does not speak TLS."""
        return self.urls[0].startswith("tls://")

    def at(self, addresses: Sequence[str]) -> BrokerAccess:
        """The same credentials at other addresses (`host:port`): those of proxies, or of one node."""
        scheme = self.urls[0].partition("://")[0]
        return replace(self, urls=tuple(f"{scheme}://{address}" for address in addresses))

    def tls_context(self) -> ssl.SSLContext | None:
        """What a client needs to speak TLS; None where it speaks plainly."""
        if not self.is_tls:
            return None
        return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))

    def variables(self) -> dict[str, str]:
        """As variables of a process: the names that our services, and the `nats` command, understand."""
        variables = {"NATS_URL": self.url}
        if self.user is not None and self.password is not None:
            variables |= {"NATS_USER": self.user, "NATS_PASSWORD": self.password}
        if self.ca_file is not None:
            variables |= {"NATS_TLS_CA_FILE": str(self.ca_file), "NATS_CA": str(self.ca_file)}
        return variables


def fresh_access(addresses: Sequence[str], *, ca_file: Path | None = None) -> BrokerAccess:
    """A way in for one run alone, with a password that nobody has seen before."""
    scheme = "nats" if ca_file is None else "tls"
    return BrokerAccess(
        urls=tuple(f"{scheme}://{address}" for address in addresses),
        user=USER,
        password=secrets.token_urlsafe(PASSWORD_BYTES),
        ca_file=ca_file,
    )
