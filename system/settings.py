"""What each process is told by its environment variables, checked before anything starts.

A value that makes no sense raises `ConfigurationError`, whose message names the variable, the value and what it should
be; the process then ends with exit code 64. Nothing here opens a file or a socket. Secrets stay out of `repr`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

_T = TypeVar("_T")

_USER_INFO = re.compile(r"//[^/@]*@")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

STREAM_REPLICAS_MAX = 5
"""As many as nats-server keeps of a stream."""


class ConfigurationError(Exception):
    """An environment variable holds something this process cannot work with."""


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
        listen=_value(environ, "ORDERS_LISTEN", "127.0.0.1:8080", address),
        nats=nats_settings(environ),
        database=_value(environ, "ORDERS_DB", "orders.db", database_location),
        ack_wait_s=_value(environ, "ORDERS_ACK_WAIT_S", "10", _number_between(0.2, 3600.0)),
        in_flight_max=_value(environ, "ORDERS_IN_FLIGHT_MAX", "1024", _whole_number_between(1, 100_000)),
        rate_max_per_s=_value(environ, "ORDERS_RATE_MAX", "0", _number_between(0.0, 1_000_000.0)),
        telemetry=_telemetry(environ, "orders"),
    )


def payments_settings(environ: Mapping[str, str]) -> PaymentsSettings:
    """Read the variables of the payments service."""
    return PaymentsSettings(
        listen=_value(environ, "PAYMENTS_LISTEN", "127.0.0.1:8081", address),
        nats=nats_settings(environ),
        provider=_value(environ, "PROVIDER_URL", "http://127.0.0.1:8082", http_address),
        database=_value(environ, "PAYMENTS_DB", "payments.db", database_location),
        ack_wait_s=_value(environ, "PAYMENTS_ACK_WAIT_S", "30", _number_between(0.2, 3600.0)),
        in_hand_max=_value(environ, "PAYMENTS_IN_HAND_MAX", "256", _whole_number_between(1, 10_000)),
        deliveries_max=_value(environ, "PAYMENTS_DELIVERIES_MAX", "20", _whole_number_between(1, 1_000_000)),
        provider_within_s=_value(environ, "PROVIDER_TIMEOUT_S", "5", _number_between(0.05, 600.0)),
        breaker_failures_max=_value(environ, "PAYMENTS_BREAKER_FAILURES", "5", _whole_number_between(1, 10_000)),
        breaker_open_s=_value(environ, "PAYMENTS_BREAKER_OPEN_S", "15", _number_between(0.05, 3600.0)),
        breaker_probes_max=_value(environ, "PAYMENTS_BREAKER_PROBES", "3", _whole_number_between(1, 1_000)),
        webhook_secret=environ.get("PROVIDER_WEBHOOK_SECRET", "") or None,
        telemetry=_telemetry(environ, "payments"),
    )


def provider_settings(environ: Mapping[str, str]) -> ProviderSettings:
    """Read the variables of the stand-in payment provider."""
    settings = ProviderSettings(
        listen=_value(environ, "PROVIDER_LISTEN", "127.0.0.1:8082", address),
        ledger=_value(environ, "PROVIDER_LEDGER", "ledger.jsonl", _path),
        latency_ms=_value(environ, "PROVIDER_LATENCY_MS", "0", _number_between(0.0, 600_000.0)),
        webhook_url=_optional(environ, "PROVIDER_WEBHOOK_URL", _http_url_with_path),
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
        level=_value(environ, "LOG_LEVEL", "INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR")),
        is_json=_value(environ, "LOG_FORMAT", "text", _one_of("text", "json")) == "json",
    )


def database_location(text: str) -> DatabaseLocation:
    """A `postgresql://` URL, or the path of a SQLite file."""
    if "://" not in text:
        return SqliteLocation(path=_path(text))
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
        url=_value(environ, "NATS_URL", "nats://127.0.0.1:4222", _nats_urls),
        reconnect_wait_s=_value(environ, "NATS_RECONNECT_WAIT_S", "1.0", _number_between(0.01, 60.0)),
        connect_within_s=_value(environ, "NATS_CONNECT_TIMEOUT_S", "30", _number_between(0.1, 3600.0)),
        ping_every_s=_value(environ, "NATS_PING_S", "1", _number_between(0.1, 60.0)),
        outstanding_max=_value(environ, "PUBLISHES_OUTSTANDING_MAX", "256", _whole_number_between(1, 100_000)),
        stream_replicas=_value(environ, "NATS_STREAM_REPLICAS", "1", _whole_number_between(1, STREAM_REPLICAS_MAX)),
        user=environ.get("NATS_USER", "") or None,
        password=environ.get("NATS_PASSWORD", "") or None,
        token=environ.get("NATS_TOKEN", "") or None,
        nkey_seed_file=_optional(environ, "NATS_NKEY_SEED_FILE", _readable_file),
        creds_file=_optional(environ, "NATS_CREDS_FILE", _readable_file),
        ca_file=_optional(environ, "NATS_TLS_CA_FILE", _readable_file),
        cert_file=_optional(environ, "NATS_TLS_CERT_FILE", _readable_file),
        key_file=_optional(environ, "NATS_TLS_KEY_FILE", _readable_file),
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
        service_name=_value(environ, "OTEL_SERVICE_NAME", service_name, _service_name),
        endpoint=_value(environ, "OTEL_EXPORTER_OTLP_ENDPOINT", "", _http_url) if endpoint else None,
        spool_directory=_path(spool) if spool else None,
    )


def without_secrets(text: str) -> str:
    """A setting as it may be shown: what stands before the @ of a URL is nobody's business."""
    return _USER_INFO.sub("//***@", text)


def _value(environ: Mapping[str, str], name: str, default: str, parse: Callable[[str], _T]) -> _T:
    text = environ.get(name, "") or default
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}={without_secrets(text)!r} {error}") from None


def _number_between(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"is not a number from {low:g} to {high:g}") from None
        if not low <= number <= high:  # False for NaN too
            raise ValueError(f"is outside {low:g}..{high:g}")
        return number

    return parse


def _whole_number_between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"is not a whole number from {low} to {high}")
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"is outside {low}..{high}")
        return number

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return text

    return parse


def _optional(environ: Mapping[str, str], name: str, parse: Callable[[str], _T]) -> _T | None:
    # An empty variable means unset.
    return _value(environ, name, "", parse) if environ.get(name) else None


def _readable_file(text: str) -> Path:
    path = _path(text)
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ValueError("is not a file that can be read")
    return path


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("is not a path")
    return Path(text)


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
