"""What each process is told by its environment variables, checked before anything starts.

A value that makes no sense raises `ConfigurationError`, whose message names the variable, the value and what it should
be; the process then ends with exit code 64. Nothing here opens a file or a socket. Secrets stay out of `repr`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from system.variables import (
    ConfigurationError,
    as_path,
    number_between,
    one_of,
    optional,
    readable_file,
    variable,
    whole_number_between,
)

_TOKEN = re.compile(r"[\x21-\x7e]+")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

STREAM_REPLICAS_MAX = 5
"""As many as nats-server keeps of a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A TCP address: where to listen, or where a server is."""

    host: str
    port: int

    def __str__(self) -> str:
        """`host:port`, with an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Where the spans of this process go.

    service_name: what the process calls itself in its spans. endpoint: the OTLP/HTTP collector, None ships nothing.
    spool_directory: where spans are written so that they outlive a killed process, None writes none.
    """

    service_name: str
    endpoint: str | None
    spool_directory: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSettings:
    """How to reach the broker, and how to be let in.

    url: `nats://` or `tls://` URLs, separated by commas. connect_within_s: how long a starting process waits
    for the broker. reconnect_wait_s: mean wait between two attempts to get back to it. ping_every_s: how often the
    connection is tested. outstanding_max: publishes waiting for their ack at once. stream_replicas: how many servers
    keep each stream. user and password, token, nkey_seed_file and creds_file: at most one of these ways to log in.
    ca_file, cert_file, key_file: PEM files for TLS.
    """

    url: str = field(repr=False)
    reconnect_wait_s: float = 1.0
    connect_within_s: float = 30.0
    ping_every_s: float = 1.0
    outstanding_max: int = 256
    stream_replicas: int = 1
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    nkey_seed_file: Path | None = None
    creds_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def servers(self) -> list[str]:
        """The URLs one by one."""
        return [url.strip() for url in self.url.split(",")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteLocation:
    """A database in one file."""

    path: Path

    def __str__(self) -> str:
        """The path."""
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresLocation:
    """A database on a PostgreSQL server. url: as libpq has it; it may hold a password."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        """The URL without its password."""
        parts = urlsplit(self.url)
        return f"postgresql://{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"


DatabaseLocation = SqliteLocation | PostgresLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersSettings:
    """Everything `python -m system.orders` is told.

    ack_wait_s: how long the broker waits for an ack. in_flight_max: `POST`s being worked on at once; more are answered
    503. rate_max_per_s: `POST`s taken in a second, 0 for any number; more are answered 429.
    """

    listen: Address
    nats: NatsSettings
    database: DatabaseLocation
    ack_wait_s: float
    in_flight_max: int
    rate_max_per_s: float
    telemetry: TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsSettings:
    """Everything `python -m system.payments` is told.

    ack_wait_s: how long the broker waits for an ack. in_hand_max: orders being charged at once. deliveries_max: how
    often a message that fails for a reason of its own is tried before it becomes a dead letter. provider_within_s: how
    long an answer of the provider may take. breaker_failures_max, breaker_open_s, breaker_probes_max: the circuit
    breaker opens on more consecutive failures than the first, stays open for the second, and then admits the third.
    webhook_secret: what the provider signs its webhooks with, None refuses them all.
    """

    listen: Address
    nats: NatsSettings
    provider: Address
    database: DatabaseLocation
    ack_wait_s: float
    in_hand_max: int
    deliveries_max: int
    provider_within_s: float
    breaker_failures_max: int
    breaker_open_s: float
    breaker_probes_max: int
    webhook_secret: str | None = field(repr=False)
    telemetry: TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """Everything `python -m system.provider` is told.

    latency_ms: how long the card network thinks, each time. webhook_url, webhook_secret: where captures and refunds are
    told, and what the telling is signed with; None tells nobody. admin_token: what it takes to change the provider's
    habits; None lets everybody who reaches it.
    """

    listen: Address
    ledger: Path
    latency_ms: float
    webhook_url: str | None
    webhook_secret: str | None = field(repr=False)
    admin_token: str | None = field(repr=False)
    telemetry: TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How a process logs. level: `DEBUG` to `ERROR`. is_json: one JSON object per line instead of text."""

    level: str
    is_json: bool


def orders_settings(environ: Mapping[str, str]) -> OrdersSettings:
    """Read the variables of the orders service."""
    return OrdersSettings(
        listen=variable(environ, "ORDERS_LISTEN", "127.0.0.1:8080", address),
        nats=nats_settings(environ),
        database=variable(environ, "ORDERS_DB", "orders.db", database_location),
        ack_wait_s=variable(environ, "ORDERS_ACK_WAIT_S", "10", number_between(0.2, 3600.0)),
        in_flight_max=variable(environ, "ORDERS_IN_FLIGHT_MAX", "1024", whole_number_between(1, 100_000)),
        rate_max_per_s=variable(environ, "ORDERS_RATE_MAX", "0", number_between(0.0, 1_000_000.0)),
        telemetry=_telemetry(environ, "orders"),
    )


def payments_settings(environ: Mapping[str, str]) -> PaymentsSettings:
    """Read the variables of the payments service."""
    return PaymentsSettings(
        listen=variable(environ, "PAYMENTS_LISTEN", "127.0.0.1:8081", address),
        nats=nats_settings(environ),
        provider=variable(environ, "PROVIDER_URL", "http://127.0.0.1:8082", http_address),
        database=variable(environ, "PAYMENTS_DB", "payments.db", database_location),
        ack_wait_s=variable(environ, "PAYMENTS_ACK_WAIT_S", "30", number_between(0.2, 3600.0)),
        in_hand_max=variable(environ, "PAYMENTS_IN_HAND_MAX", "256", whole_number_between(1, 10_000)),
        deliveries_max=variable(environ, "PAYMENTS_DELIVERIES_MAX", "20", whole_number_between(1, 1_000_000)),
        provider_within_s=variable(environ, "PROVIDER_TIMEOUT_S", "5", number_between(0.05, 600.0)),
        breaker_failures_max=variable(environ, "PAYMENTS_BREAKER_FAILURES", "5", whole_number_between(1, 10_000)),
        breaker_open_s=variable(environ, "PAYMENTS_BREAKER_OPEN_S", "15", number_between(0.05, 3600.0)),
        breaker_probes_max=variable(environ, "PAYMENTS_BREAKER_PROBES", "3", whole_number_between(1, 1_000)),
        webhook_secret=environ.get("PROVIDER_WEBHOOK_SECRET", "") or None,
        telemetry=_telemetry(environ, "payments"),
    )


def provider_settings(environ: Mapping[str, str]) -> ProviderSettings:
    """Read the variables of the stand-in payment provider."""
    settings = ProviderSettings(
        listen=variable(environ, "PROVIDER_LISTEN", "127.0.0.1:8082", address),
        ledger=variable(environ, "PROVIDER_LEDGER", "ledger.jsonl", as_path),
        latency_ms=variable(environ, "PROVIDER_LATENCY_MS", "0", number_between(0.0, 600_000.0)),
        webhook_url=optional(environ, "PROVIDER_WEBHOOK_URL", _http_url_with_path),
        webhook_secret=environ.get("PROVIDER_WEBHOOK_SECRET", "") or None,
        admin_token=environ.get("PROVIDER_ADMIN_TOKEN", "") or None,
        telemetry=_telemetry(environ, "provider"),
    )
    if settings.admin_token is not None and not _TOKEN.fullmatch(settings.admin_token):
        raise ConfigurationError("PROVIDER_ADMIN_TOKEN holds something else than visible ASCII characters")
    if settings.webhook_url is not None and settings.webhook_secret is None:
        raise ConfigurationError("PROVIDER_WEBHOOK_URL is set without PROVIDER_WEBHOOK_SECRET: nobody trusts a webhook")
    return settings


def log_settings(environ: Mapping[str, str]) -> LogSettings:
    """Read the variables that every process's log goes by."""
    return LogSettings(
        level=variable(environ, "LOG_LEVEL", "INFO", one_of("DEBUG", "INFO", "WARNING", "ERROR")),
        is_json=variable(environ, "LOG_FORMAT", "text", one_of("text", "json")) == "json",
    )


def database_location(text: str) -> DatabaseLocation:
    """A `postgresql://` URL, or the path of a SQLite file."""
    if "://" not in text:
        return SqliteLocation(path=as_path(text))
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError where the port is no number
    if parts.scheme not in ("postgresql", "postgres") or len(parts.path) < 2:  # noqa: PLR2004 - a slash and a name
        raise ValueError("is neither a path nor a postgresql://host/database URL")
    return PostgresLocation(url=text)


def address(text: str) -> Address:
    """`host:port`; port 0 is refused, because nobody could be told which port it became."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - the highest TCP port
        raise ValueError("is not host:port with a port from 1 to 65535")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))


def http_address(text: str) -> Address:
    """The address in a plain `http://host:port` URL; a path, query or https is refused rather than ignored."""
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("is not a plain http://host:port")
    return Address(host=_host(parts.hostname), port=_port(parts.port))


def nats_settings(environ: Mapping[str, str]) -> NatsSettings:
    """Read the variables that say how to reach the broker."""
    settings = NatsSettings(
        url=variable(environ, "NATS_URL", "nats://127.0.0.1:4222", _nats_urls),
        reconnect_wait_s=variable(environ, "NATS_RECONNECT_WAIT_S", "1.0", number_between(0.01, 60.0)),
        connect_within_s=variable(environ, "NATS_CONNECT_TIMEOUT_S", "30", number_between(0.1, 3600.0)),
        ping_every_s=variable(environ, "NATS_PING_S", "1", number_between(0.1, 60.0)),
        outstanding_max=variable(environ, "PUBLISHES_OUTSTANDING_MAX", "256", whole_number_between(1, 100_000)),
        stream_replicas=variable(environ, "NATS_STREAM_REPLICAS", "1", whole_number_between(1, STREAM_REPLICAS_MAX)),
        user=environ.get("NATS_USER", "") or None,
        password=environ.get("NATS_PASSWORD", "") or None,
        token=environ.get("NATS_TOKEN", "") or None,
        nkey_seed_file=optional(environ, "NATS_NKEY_SEED_FILE", readable_file),
        creds_file=optional(environ, "NATS_CREDS_FILE", readable_file),
        ca_file=optional(environ, "NATS_TLS_CA_FILE", readable_file),
        cert_file=optional(environ, "NATS_TLS_CERT_FILE", readable_file),
        key_file=optional(environ, "NATS_TLS_KEY_FILE", readable_file),
    )
    ways = {
        "NATS_USER": settings.user,
        "NATS_TOKEN": settings.token,
        "NATS_NKEY_SEED_FILE": settings.nkey_seed_file,
        "NATS_CREDS_FILE": settings.creds_file,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)} are set: choose one way to log in")
    for name, value, needed, its_value in (
        ("NATS_PASSWORD", settings.password, "NATS_USER", settings.user),
        ("NATS_USER", settings.user, "NATS_PASSWORD", settings.password),
        ("NATS_TLS_CERT_FILE", settings.cert_file, "NATS_TLS_KEY_FILE", settings.key_file),
        ("NATS_TLS_KEY_FILE", settings.key_file, "NATS_TLS_CERT_FILE", settings.cert_file),
    ):
        if value is not None and its_value is None:
            raise ConfigurationError(f"{name} is set without {needed}: set both or neither")
    return settings


def _telemetry(environ: Mapping[str, str], service_name: str) -> TelemetrySettings:
    # An empty variable means unset, as the OpenTelemetry specification asks.
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    spool = environ.get("SPAN_SPOOL_DIR", "")
    return TelemetrySettings(
        service_name=variable(environ, "OTEL_SERVICE_NAME", service_name, _service_name),
        endpoint=variable(environ, "OTEL_EXPORTER_OTLP_ENDPOINT", "", _http_url) if endpoint else None,
        spool_directory=as_path(spool) if spool else None,
    )


def _nats_urls(text: str) -> str:
    for url in text.split(","):
        parts = urlsplit(url.strip())
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ValueError("is not a nats://host:port URL, or several separated by commas")
        _ = parts.port  # raises ValueError where the port is no number
    return text


def _http_url(text: str) -> str:
    http_address(text.rstrip("/"))
    return text.rstrip("/")


def _http_url_with_path(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.username:
        raise ValueError("is not a plain http://host:port/path")
    _host(parts.hostname)
    _port(parts.port)  # raises ValueError where the port is no number
    return text


def _host(name: str) -> str:
    """A name that can be looked up; whether there is such a host is not asked."""
    try:
        name.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"names a host that cannot be: {name!r} ({error})") from None
    return name


def _port(number: int | None) -> int:
    if number == 0:
        raise ValueError("names port 0, where nobody listens")
    return 80 if number is None else number


def _service_name(text: str) -> str:
    # The name becomes part of a file name in the spool.
    if not _SERVICE_NAME.fullmatch(text):
        raise ValueError("is not a plain word of letters, digits, '_', '.', '-'")
    return text
