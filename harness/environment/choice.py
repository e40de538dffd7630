"""Where the real parts of a run come from, as somebody chose it.

Promises: a choice that cannot be is refused when it is made, with the words of the command line; secrets stay out of
`repr`, and out of everything that a plan keeps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from harness.errors import UsageError

EMBEDDED = "embedded"
CONTAINER = "container"
CLUSTER = "cluster"
CLUSTER_CONTAINER = "cluster-container"
EXTERNAL = "external"
BACKENDS = (EMBEDDED, CONTAINER, CLUSTER, CLUSTER_CONTAINER, EXTERNAL)

_USER_INFO = re.compile(r"//[^/@]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """Which backend, and which variant of it.

    nats_version: a published nats-server (`2.12.4`), None for the pinned one. postgres: a PostgreSQL server beside the
    broker. tls: the broker takes TLS alone, with certificates of the run's own. nats_url, toxiproxy_url: somebody's
    running parts, for `external` alone. allowed_faults: kinds of fault that may harm what is not ours.
    """

    name: str = EMBEDDED
    nats_version: str | None = None
    postgres: bool = False
    tls: bool = False
    nats_url: str | None = field(default=None, repr=False)
    toxiproxy_url: str | None = None
    allowed_faults: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise UsageError(f"there is no backend {self.name!r}; there is: {', '.join(BACKENDS)}")
        if self.nats_version is not None:
            from harness.environment.nats.versions import NatsVersion  # noqa: PLC0415 - seldom needed

            NatsVersion.parse(self.nats_version)
        if self.is_external:
            self._check_external()
        elif self.nats_url is not None or self.toxiproxy_url is not None or self.allowed_faults:
            raise UsageError(
                f"--nats-url, --toxiproxy-url and --allow-fault are about somebody's running parts: "
                f"add --backend {EXTERNAL}, or leave them out with --backend {self.name}"
            )

    @property
    def is_external(self) -> bool:
        """Whether broker and proxies are somebody's own."""
        return self.name == EXTERNAL

    @property
    def is_cluster(self) -> bool:
        """Whether the broker is three servers."""
        return self.name in (CLUSTER, CLUSTER_CONTAINER)

    @property
    def is_containers(self) -> bool:
        """Whether the parts run in containers."""
        return self.name in (CONTAINER, CLUSTER_CONTAINER)

    def words(self) -> list[str]:
        """The options that say this choice again, without secrets; none for the default."""
        words = [] if self.name == EMBEDDED else ["--backend", self.name]
        if self.nats_version is not None:
            words += ["--nats-version", self.nats_version]
        words += ["--postgres"] * self.postgres
        words += ["--tls"] * self.tls
        if self.nats_url is not None:
            words += ["--nats-url", without_credentials(self.nats_url)]
        if self.toxiproxy_url is not None:
            words += ["--toxiproxy-url", self.toxiproxy_url]
        for fault in sorted(self.allowed_faults):
            words += ["--allow-fault", fault]
        return words

    def _check_external(self) -> None:
        if self.nats_url is None or self.toxiproxy_url is None:
            raise UsageError(f"--backend {EXTERNAL} needs --nats-url and --toxiproxy-url: your running parts")
        if self.nats_version is not None or self.tls:
            raise UsageError(
                f"--backend {EXTERNAL} takes your broker as it is: --nats-version and --tls are not ours to choose "
                "(write tls:// in --nats-url for one that speaks TLS)"
            )
        parts = _split(self.nats_url, "--nats-url")
        if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.path not in ("", "/"):
            raise UsageError(f"--nats-url {without_credentials(self.nats_url)!r} is not nats://host:port")
        parts = _split(self.toxiproxy_url, "--toxiproxy-url")
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.username is not None:
            raise UsageError(
                f"--toxiproxy-url {without_credentials(self.toxiproxy_url)!r} is not http://host:port, "
                "where Toxiproxy's API listens"
            )


def without_credentials(url: str) -> str:
    """A URL as it may be shown and kept: nothing stands before its host."""
    return _USER_INFO.sub("//", url)


def _split(url: str, option: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError where it is no number
    except ValueError as error:
        raise UsageError(f"{option} {without_credentials(url)!r} is not a URL: {error}") from None
    return parts
