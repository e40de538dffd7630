"""What each process is told by its environment variables, checked before anything starts.

A value that makes no sense raises `ConfigurationError`, whose message names the variable, the value and what it should
be; the process then ends with exit code 64. Nothing here opens a file or a socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

_T = TypeVar("_T")

_SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


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
    """How to reach the broker. reconnect_wait_s: mean wait between two attempts to get back to it."""

    url: str
    reconnect_wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersSettings:
    """Everything `python -m system.orders` is told. ack_wait_s: how long the broker waits for an ack."""

    listen: Address
    nats: NatsSettings
    database: Path
    ack_wait_s: float
    telemetry: TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsSettings:
    """Everything `python -m system.payments` is told. ack_wait_s: how long the broker waits for an ack."""

    listen: Address
    nats: NatsSettings
    provider: Address
    ack_wait_s: float
    telemetry: TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """Everything `python -m system.provider` is told. latency_ms: how long the card network thinks, each time."""

    listen: Address
    ledger: Path
    latency_ms: float
    telemetry: TelemetrySettings


def orders_settings(environ: Mapping[str, str]) -> OrdersSettings:
    """Read the variables of the orders service."""
    return OrdersSettings(
        listen=_value(environ, "ORDERS_LISTEN", "127.0.0.1:8080", address),
        nats=_nats(environ),
        database=_value(environ, "ORDERS_DB", "orders.db", _path),
        ack_wait_s=_value(environ, "ORDERS_ACK_WAIT_S", "10", _number_between(0.2, 3600.0)),
        telemetry=_telemetry(environ, "orders"),
    )


def payments_settings(environ: Mapping[str, str]) -> PaymentsSettings:
    """Read the variables of the payments service."""
    return PaymentsSettings(
        listen=_value(environ, "PAYMENTS_LISTEN", "127.0.0.1:8081", address),
        nats=_nats(environ),
        provider=_value(environ, "PROVIDER_URL", "http://127.0.0.1:8082", http_address),
        ack_wait_s=_value(environ, "PAYMENTS_ACK_WAIT_S", "30", _number_between(0.2, 3600.0)),
        telemetry=_telemetry(environ, "payments"),
    )


def provider_settings(environ: Mapping[str, str]) -> ProviderSettings:
    """Read the variables of the stand-in payment provider."""
    return ProviderSettings(
        listen=_value(environ, "PROVIDER_LISTEN", "127.0.0.1:8082", address),
        ledger=_value(environ, "PROVIDER_LEDGER", "ledger.jsonl", _path),
        latency_ms=_value(environ, "PROVIDER_LATENCY_MS", "0", _number_between(0.0, 600_000.0)),
        telemetry=_telemetry(environ, "provider"),
    )


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
    return Address(host=parts.hostname, port=parts.port or 80)


def _nats(environ: Mapping[str, str]) -> NatsSettings:
    return NatsSettings(
        url=_value(environ, "NATS_URL", "nats://127.0.0.1:4222", _nats_url),
        reconnect_wait_s=_value(environ, "NATS_RECONNECT_WAIT_S", "1.0", _number_between(0.01, 60.0)),
    )


def _telemetry(environ: Mapping[str, str], service_name: str) -> TelemetrySettings:
    # An empty variable means unset, as the OpenTelemetry specification asks.
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    spool = environ.get("SPAN_SPOOL_DIR", "")
    return TelemetrySettings(
        service_name=_value(environ, "OTEL_SERVICE_NAME", service_name, _service_name),
        endpoint=_value(environ, "OTEL_EXPORTER_OTLP_ENDPOINT", "", _http_url) if endpoint else None,
        spool_directory=_path(spool) if spool else None,
    )


def _value(environ: Mapping[str, str], name: str, default: str, parse: Callable[[str], _T]) -> _T:
    text = environ.get(name, "") or default
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}={text!r} {error}") from None


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


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("is not a path")
    return Path(text)


def _nats_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("nats", "tls") or not parts.hostname:
        raise ValueError("is not a nats://host:port URL")
    _ = parts.port  # raises ValueError where the port is no number
    return text


def _http_url(text: str) -> str:
    http_address(text.rstrip("/"))
    return text.rstrip("/")


def _service_name(text: str) -> str:
    # The name becomes part of a file name in the spool.
    if not _SERVICE_NAME.fullmatch(text):
        raise ValueError("is not a plain word of letters, digits, '_', '.', '-'")
    return text
