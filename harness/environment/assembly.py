"""Which parts a backend stands on: the one place that knows them by class.

A backend is a choice of three things that know nothing of each other: what hosts the parts (processes or containers),
how many servers the broker has, and whether there is a database. `external` is the exception: nothing there is ours but
the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from harness.environment.containers.host import ContainerHost
from harness.environment.containers.images import POSTGRES_IMAGE, TOXIPROXY_IMAGE, nats_image
from harness.environment.external import external_broker, external_proxies
from harness.environment.host import ProcessHost
from harness.environment.layout import monitoring_of
from harness.environment.nats.cluster import NatsCluster
from harness.environment.nats.cluster_config import cluster_block, fresh_route_password
from harness.environment.nats.server import DISTRIBUTION, NO_CLUSTER, NatsServer, find_nats_server
from harness.environment.nats.versions import NatsVersion, find_nats_server_version
from harness.environment.parts import Broker, OneServer, Parts
from harness.environment.postgres.server import PostgresServer
from harness.environment.run_site import Site
from harness.environment.topology import BROKER, DATABASE
from harness.environment.toxiproxy.binary import find_or_build_toxiproxy
from harness.environment.toxiproxy.server import TOXIPROXY, ToxiproxyServer
from harness.errors import EnvironmentFailedError

PASSWORD_BYTES = 24


async def assemble(site: Site) -> Parts:
    """Build the parts of a run, and start none. Raises EnvironmentFailedError when one cannot be had here."""
    host = await host_of(site)
    database = database_of(site, host) if site.choice.postgres else None
    if site.choice.is_external:
        foreign = frozenset({BROKER, TOXIPROXY})
        return Parts(broker=external_broker(site), proxies=external_proxies(site), database=database, foreign=foreign)
    broker = broker_of(await nats_servers(site, host))
    return Parts(broker=broker, proxies=proxies_of(site, host), database=database)


async def host_of(site: Site) -> ProcessHost:
    """What runs the parts: the supervisor, or the container engine of this machine."""
    if not site.choice.is_containers:
        return site.supervisor
    host = ContainerHost(
        owner_label=site.supervisor.owner_label,
        scratch_directory=site.wiring.scratch_directory,
        record=site.supervisor.record,
        progress=site.progress,
    )
    await host.prepare()
    return host


async def nats_servers(site: Site, host: ProcessHost) -> list[NatsServer]:
    """The broker's servers, one or three."""
    wiring, nodes = site.wiring, site.layout.nodes
    binary, image = await _nats(site)
    route_password = fresh_route_password()
    return [
        NatsServer(
            name=node,
            host=host,
            binary=binary,
            image=image,
            address=wiring.listen(node),
            monitoring_address=wiring.listen(monitoring_of(node)),
            directory=wiring.directory(node),
            log_path=site.log_path(node),
            environment=site.variables,
            access=wiring.access,
            tls=site.tls,
            cluster=(
                cluster_block(node, wiring, nodes=nodes, password=route_password) if len(nodes) > 1 else NO_CLUSTER
            ),
        )
        for node in nodes
    ]


def broker_of(servers: Sequence[NatsServer]) -> Broker:
    """These servers as one broker."""
    return NatsCluster(servers) if len(servers) > 1 else OneServer(servers[0])


def proxies_of(site: Site, host: ProcessHost) -> ToxiproxyServer:
    """Toxiproxy, with a proxy for every link."""

    async def find_binary() -> Path:
        return Path("toxiproxy-server") if site.choice.is_containers else await find_or_build_toxiproxy(site.progress)

    return ToxiproxyServer(
        host=host,
        find_binary=find_binary,
        image=TOXIPROXY_IMAGE if site.choice.is_containers else None,
        address=site.wiring.listen(TOXIPROXY),
        links=tuple(site.wiring.links.values()),
        log_path=site.log_path(TOXIPROXY),
        environment=site.variables,
    )


def database_of(site: Site, host: ProcessHost) -> PostgresServer:
    """PostgreSQL, with a database for every client that the topology links to it."""
    return PostgresServer(
        host=host,
        image=POSTGRES_IMAGE if site.choice.is_containers else None,
        address=site.wiring.listen(DATABASE),
        password=secrets.token_urlsafe(PASSWORD_BYTES),
        directory=site.wiring.directory(DATABASE),
        log_path=site.log_path(DATABASE),
        environment=site.variables,
        databases=sorted({link.client for link in site.layout.links if link.server == DATABASE}),
        progress=site.progress,
    )


async def _nats(site: Site) -> tuple[Path, str | None]:
    version = site.choice.nats_version
    if site.choice.is_containers:
        return Path("nats-server"), nats_image(
            _pinned_version() if version is None else str(NatsVersion.parse(version))
        )
    return find_nats_server() if version is None else await find_nats_server_version(version, site.progress), None


def _pinned_version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise EnvironmentFailedError(
            f"{DISTRIBUTION} is not installed, whose version says which image is meant; give --nats-version"
        ) from error
