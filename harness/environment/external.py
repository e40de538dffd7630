"""Somebody's running broker and Toxiproxy: used, not owned.

Promises: what is theirs is never started, stopped or killed; the proxies made on their Toxiproxy carry a name of this
run and are deleted at the end, and those that a crashed run of this user left go first. Whether a fault may reach their
parts is for `RunningEnvironment.ensure_may_harm` to say.

Does not: delete the system's streams, which belong to whoever owns the broker; nor follow a broker whose certificate is
not valid for the proxies' address, 127.0.0.1, as clients see it there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.environment.choice import BackendChoice
from harness.environment.concurrency import together
from harness.environment.links import NetworkLink
from harness.environment.nats.access import BrokerAccess
from harness.environment.parts import HostedPart, OneServer
from harness.environment.ports import split_address
from harness.environment.probes import Probe, probe_nats
from harness.environment.processes.ownership import Owner, namespace_of
from harness.environment.run_site import Site
from harness.environment.somebodys_host import SomebodysHost
from harness.environment.topology import BROKER
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.environment.toxiproxy.server import TOXIPROXY
from harness.environment.toxiproxy.toxics import Direction
from harness.errors import EnvironmentFailedError, UsageError

ANSWER_WITHIN_S = 5.0
DEFAULT_NATS_PORT = 4222
DEFAULT_TOXIPROXY_PORT = 8474

USER_VARIABLE = "NATS_USER"
PASSWORD_VARIABLE = "NATS_PASSWORD"  # noqa: S105 - the name of a variable, not what it holds
CA_VARIABLE = "NATS_TLS_CA_FILE"

_OURS = "stormproof"


def external_access(choice: BackendChoice, environ: Mapping[str, str] = os.environ) -> BrokerAccess:
    """The way to somebody's broker. Credentials come from the URL, else from NATS_USER and NATS_PASSWORD."""
    parts = urlsplit(choice.nats_url or "")
    user, password = environ.get(USER_VARIABLE) or None, environ.get(PASSWORD_VARIABLE) or None
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    if (user is None) != (password is None):
        missing = USER_VARIABLE if user is None else PASSWORD_VARIABLE
        raise UsageError(
            f"{missing} is not set, and the other one is: set both or neither, or put both into --nats-url"
        )
    ca_file = Path(environ[CA_VARIABLE]) if parts.scheme == "tls" and environ.get(CA_VARIABLE) else None
    if ca_file is not None and not ca_file.is_file():
        raise UsageError(f"{CA_VARIABLE}={ca_file} is not a file")
    address = _address_of(choice.nats_url, DEFAULT_NATS_PORT)
    return BrokerAccess(urls=(f"{parts.scheme}://{address}",), user=user, password=password, ca_file=ca_file)


def external_addresses(choice: BackendChoice) -> dict[str, str]:
    """Where their parts listen, by role. Raises UsageError when their Toxiproxy is not on this host."""
    toxiproxy = _address_of(choice.toxiproxy_url, DEFAULT_TOXIPROXY_PORT)
    try:
        host, port = split_address(toxiproxy)
    except UsageError as error:
        raise UsageError(
            f"--toxiproxy-url leads to {toxiproxy}: its proxies would listen there, and the system runs here; "
            "give one on this host's loopback"
        ) from error
    return {BROKER: _address_of(choice.nats_url, DEFAULT_NATS_PORT), TOXIPROXY: f"{host}:{port}"}


def proxy_prefix(owner_label: str) -> str:
    """What the names of this run's proxies begin with: whose they are, for a later run that finds them."""
    return f"{_OURS}:{_pid_namespace()}:{owner_label}:"


def external_broker(site: Site) -> OneServer:
    """Somebody's broker."""
    return OneServer(SomebodysBroker(site.wiring.access))


def external_proxies(site: Site) -> SomebodysToxiproxy:
    """Somebody's Toxiproxy, with this run's proxies."""
    return SomebodysToxiproxy(
        site.wiring.listen(TOXIPROXY),
        links=tuple(site.wiring.links.values()),
        prefix=proxy_prefix(site.supervisor.owner_label),
    )


class SomebodysBroker(HostedPart):
    """A broker that runs already; implements `Part`."""

    def __init__(self, access: BrokerAccess) -> None:
        """access: how it lets us in."""
        super().__init__(name=BROKER, host=SomebodysHost())
        self._access = access

    async def start(self) -> None:
        """See that it runs and lets us in."""
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until it answers, with JetStream."""
        address = self._access.urls[0].partition("://")[2]
        await self.host.wait_ready(
            self.name, lambda: probe_nats(address, access=self._access), within_s=ANSWER_WITHIN_S
        )


class SomebodysToxiproxy(HostedPart):
    """A Toxiproxy that runs already, with proxies of ours on it; implements `Proxies`."""

    def __init__(self, address: str, *, links: Sequence[NetworkLink], prefix: str) -> None:
        """prefix: what the names of our proxies begin with."""
        self.client = ToxiproxyClient(address)
        super().__init__(name=TOXIPROXY, host=_ProxiesHost(self.client, prefix))
        self._links = links

    async def start(self) -> None:
        """Create every link's proxy, once what crashed runs left is gone."""
        await self.wait_ready()
        await self._ensure_counting()
        await _delete([name for name in await self.client.proxies() if is_left_over(name)], self.client)
        await together(*(link.create_on(self.client) for link in self._links))
        for link in self._links:
            await _ensure_reachable(link, self.client)

    async def _ensure_counting(self) -> None:
        try:
            await self.client.bytes_of("", Direction.UPSTREAM)
        except EnvironmentFailedError as error:
            raise EnvironmentFailedError(
                f"Toxiproxy at {self.client.address} counts no bytes, and without that nobody can prove that a fault "
                f"bit: start it with -proxy-metrics ({error})"
            ) from error

    async def wait_ready(self) -> None:
        """Wait until its API answers."""

        async def why_not() -> str | None:
            try:
                await self.client.version()
            except EnvironmentFailedError as error:
                return str(error)
            return None

        await self.host.wait_ready(self.name, why_not, within_s=ANSWER_WITHIN_S)


class _ProxiesHost(SomebodysHost):
    """The end of our proxies is the one thing that is ours to bring about."""

    def __init__(self, client: ToxiproxyClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._has_answered = False

    async def wait_ready(self, name: str, probe: Probe, *, within_s: float) -> None:
        """Wait, and remember that there may be something to delete from now on."""
        await super().wait_ready(name, probe, within_s=within_s)
        self._has_answered = True

    async def close(self, *, grace_s: float) -> None:  # noqa: ARG002 - the client's calls have their own bounds
        """Delete our proxies, so that theirs are what is left."""
        if self._has_answered:
            await _delete(
                [name for name in await self._client.proxies() if name.startswith(self._prefix)], self._client
            )


def is_left_over(proxy: str) -> bool:
    """Whether this proxy was made by a run of ours on this host whose harness is gone."""
    word, _, rest = proxy.partition(":")
    namespace, _, rest = rest.partition(":")
    owner = Owner.parse(rest.rpartition(":")[0])
    return word == _OURS and namespace == _pid_namespace() and owner is not None and not owner.is_alive


async def _delete(names: Sequence[str], client: ToxiproxyClient) -> None:
    await together(*(client.delete(name) for name in names))


async def _ensure_reachable(link: NetworkLink, client: ToxiproxyClient) -> None:
    host, _, port = link.listen.rpartition(":")
    try:
        _reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise EnvironmentFailedError(
            f"Toxiproxy at {client.address} made a proxy that nobody reaches at {link.listen} ({error.strerror}): "
            "its loopback is not this host's; run it here, or in a container with host networking"
        ) from error
    writer.transport.abort()


def _address_of(url: str | None, default_port: int) -> str:
    parts = urlsplit(url or "")
    return f"{parts.hostname}:{parts.port or default_port}"


def _pid_namespace() -> str:
    # Where the pid in the owner label means something: harnesses in containers may share a Toxiproxy.
    return namespace_of("self").strip("pid:[]") or "0"
