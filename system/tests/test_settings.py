"""Configuration: defaults, and the sentence for each mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from system.settings import orders_settings, payments_settings, provider_settings
from system.variables import ConfigurationError

Read = Callable[[Mapping[str, str]], object]


def test_without_variables_there_are_defaults() -> None:
    """The three processes find each other and the broker on one machine."""
    orders, payments, provider = orders_settings({}), payments_settings({}), provider_settings({})

    assert str(orders.listen) == "127.0.0.1:8080"
    assert orders.nats.url == "nats://127.0.0.1:4222"
    assert payments.provider == provider.listen
    assert payments.ack_wait_s == 30.0
    assert orders.telemetry.endpoint is None
    assert orders.nats.stream_replicas == payments.nats.stream_replicas == 1


@pytest.mark.parametrize(
    ("read", "name", "value"),
    [
        (orders_settings, "ORDERS_LISTEN", "8080"),
        (orders_settings, "ORDERS_LISTEN", "localhost:0"),
        (orders_settings, "ORDERS_LISTEN", "localhost:99999"),
        (orders_settings, "NATS_URL", "127.0.0.1:4222"),
        (orders_settings, "NATS_URL", "http://127.0.0.1:4222"),
        (orders_settings, "NATS_URL", "nats://host:port"),
        (orders_settings, "NATS_RECONNECT_WAIT_S", "0"),
        (orders_settings, "NATS_STREAM_REPLICAS", "0"),
        (payments_settings, "NATS_STREAM_REPLICAS", "6"),
        (payments_settings, "NATS_STREAM_REPLICAS", "three"),
        (orders_settings, "OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318"),
        (orders_settings, "OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector"),
        (orders_settings, "OTEL_SERVICE_NAME", "../up"),
        (payments_settings, "PROVIDER_URL", "127.0.0.1:8082"),
        (payments_settings, "PROVIDER_URL", "http://host:port"),
        (payments_settings, "PROVIDER_URL", "http://provider..svc:8082"),
        (payments_settings, "PROVIDER_URL", "http://provider:0"),
        (provider_settings, "PROVIDER_WEBHOOK_URL", "http://payments..svc:8082/webhook"),
        (payments_settings, "PAYMENTS_ACK_WAIT_S", "soon"),
        (payments_settings, "PAYMENTS_ACK_WAIT_S", "nan"),
        (provider_settings, "PROVIDER_LATENCY_MS", "-1"),
    ],
)
def test_a_mistake_is_named_with_its_value(read: Read, name: str, value: str) -> None:
    """One sentence: which variable, which value, what it should be."""
    with pytest.raises(ConfigurationError) as raised:
        read({name: value})

    assert str(raised.value).startswith(f"{name}={value!r} ")


@pytest.mark.parametrize("name", ["NATS_URL", "PROVIDER_URL", "PAYMENTS_DB"])
def test_no_secret_is_shown_in_an_error_or_in_the_settings(name: str) -> None:
    """A URL may hold a password, and logs are read by many."""
    with pytest.raises(ConfigurationError) as refused:
        payments_settings({name: "nonsense://user:hunter2@host"})
    settings = payments_settings(
        {"NATS_URL": "nats://user:hunter2@host:4222", "PAYMENTS_DB": "postgresql://user:hunter2@host/db"}
    )

    assert "hunter2" not in str(refused.value)
    assert "***" in str(refused.value)
    assert "hunter2" not in repr(settings)


def test_an_admin_token_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    """It would otherwise never be matched; and what is shown here stands in somebody's log."""
    with pytest.raises(ConfigurationError, match="PROVIDER_ADMIN_TOKEN") as refused:
        provider_settings({"PROVIDER_ADMIN_TOKEN": "größe"})

    assert "größe" not in str(refused.value)
    assert "s3cret" not in repr(provider_settings({"PROVIDER_ADMIN_TOKEN": "s3cret"}))
