"""What the provider tells a shop by itself: signed, within the trace, tried again, bounded."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from system.metrics import Metrics
from system.provider import webhooks
from system.provider.habits import Behaviour, Habits
from system.provider.ledger import Entry
from system.provider.webhooks import ATTEMPTS_MAX, Webhooks
from system.settings import Address, TelemetrySettings, provider_settings
from system.telemetry import Telemetry
from system.tests.parts import Process, accepts, ask, free_port, wait_until
from system.variables import ConfigurationError
from system.web import Request, Response, Server

SECRET = "between us"  # noqa: S105 - of a test
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Shop:
    """A shop that hears webhooks and answers from a list, and 200 when it is empty."""

    def __init__(self, *statuses: int) -> None:
        self.port = free_port()
        self.heard: list[Request] = []
        self._statuses = list(statuses)

    async def __call__(self, request: Request) -> Response:
        """Hear one."""
        self.heard.append(request)
        return Response(status=self._statuses.pop(0) if self._statuses else 200)

    def bodies(self) -> list[dict[str, object]]:
        """What was heard."""
        return [json.loads(request.body) for request in self.heard]


def charge(order: str = "o1") -> Entry:
    """A charge in the ledger."""
    return Entry(
        seq=1,
        kind="charge",
        charge_id=f"ch_{order}",
        order_id=order,
        idempotency_key=order,
        amount_minor=1250,
        currency="EUR",
        at_ns=7,
    )


def refund(order: str = "o1") -> Entry:
    """Its refund."""
    return Entry(
        seq=2,
        kind="refund",
        charge_id=f"ch_{order}",
        order_id=order,
        idempotency_key=f"refund:{order}",
        amount_minor=1250,
        currency="EUR",
        at_ns=8,
        charge_key=order,
        refund_id=f"re_{order}",
    )


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "BACKOFF_FIRST_S", 0.001)


@contextlib.asynccontextmanager
async def telling(shop: Shop, metrics: Metrics, habits: Habits | None = None) -> AsyncIterator[Webhooks]:
    """Webhooks to this shop."""
    quiet = TelemetrySettings(service_name="provider", endpoint=None, spool_directory=None)
    async with (
        Telemetry(quiet, metrics) as telemetry,
        Webhooks(
            f"http://127.0.0.1:{shop.port}/hooks/provider",
            SECRET,
            Behaviour(habits or Habits()),
            tracer=telemetry.tracer,
            metrics=metrics,
        ) as telling,
    ):
        yield telling


def count(metrics: Metrics, outcome: str) -> int:
    """How many webhooks ended so."""
    return int(metrics.counter("webhooks", "", label="outcome", value=outcome).value)


async def test_a_capture_and_a_refund_are_told_signed_and_within_the_trace(metrics: Metrics) -> None:
    """The signature is the HMAC of exactly these bytes, and the trace is that of whoever asked for the charge."""
    shop = Shop()
    async with Server(Address(host="127.0.0.1", port=shop.port), shop), telling(shop, metrics) as telling_it:
        telling_it.tell(charge(), traceparent=TRACEPARENT)
        await wait_until(lambda: len(shop.heard) == 1, what="the capture")
        telling_it.tell(refund(), traceparent=TRACEPARENT)
        await wait_until(lambda: len(shop.heard) == 2, what="the refund")

    told = {"order_id": "o1", "charge_id": "ch_o1", "amount_minor": 1250, "currency": "EUR"}
    assert shop.bodies() == [
        {**told, "kind": "captured", "refund_id": "", "at_ns": 7},
        {**told, "kind": "refunded", "refund_id": "re_o1", "at_ns": 8},
    ]
    for request in shop.heard:
        assert (request.method, request.path) == ("POST", "/hooks/provider")
        expected = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
        assert request.headers["provider-signature"] == expected
        trace, span = request.headers["traceparent"].split("-")[1:3]
        assert trace == TRACEPARENT.split("-")[1]
        assert span != TRACEPARENT.split("-")[2]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_a_shop_that_fails_is_told_again(metrics: Metrics, status: int) -> None:
    """The same bytes, until it takes them."""
    shop = Shop(status, status)
    async with Server(Address(host="127.0.0.1", port=shop.port), shop), telling(shop, metrics) as telling_it:
        telling_it.tell(charge(), traceparent=TRACEPARENT)
        await wait_until(lambda: count(metrics, "told") == 1, what="the third attempt")

    assert [request.body for request in shop.heard] == [shop.heard[0].body] * 3


async def test_a_shop_that_refuses_is_not_asked_again(metrics: Metrics) -> None:
    """404 is an answer."""
    shop = Shop(404)
    async with Server(Address(host="127.0.0.1", port=shop.port), shop), telling(shop, metrics) as telling_it:
        telling_it.tell(charge(), traceparent=TRACEPARENT)
        await wait_until(lambda: count(metrics, "given_up") == 1, what="giving up")

    assert len(shop.heard) == 1


async def test_a_shop_that_is_away_is_given_up_after_a_few_attempts(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and logged, and the next one is told to whoever is there by then."""
    shop = Shop()
    async with telling(shop, metrics) as telling_it:
        telling_it.tell(charge("o1"), traceparent=TRACEPARENT)
        await wait_until(lambda: count(metrics, "given_up") == 1, what="giving up")
        async with Server(Address(host="127.0.0.1", port=shop.port), shop):
            telling_it.tell(charge("o2"), traceparent=TRACEPARENT)
            await wait_until(lambda: len(shop.heard) == 1, what="the other one")

    assert "captured of order o1 is given up" in caplog.text
    assert ATTEMPTS_MAX == 5


async def test_what_finds_the_queue_full_is_dropped_and_counted(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telling never waits, whatever the shop does."""
    monkeypatch.setattr(webhooks, "QUEUE_MAX", 3)
    shop = Shop()
    async with Server(Address(host="127.0.0.1", port=shop.port), shop), telling(shop, metrics) as telling_it:
        for n in range(5):
            telling_it.tell(charge(f"o{n}"), traceparent=TRACEPARENT)
        await wait_until(lambda: len(shop.heard) == 3, what="the three that fit")

    assert sorted(str(body["order_id"]) for body in shop.bodies()) == ["o0", "o1", "o2"]
    assert count(metrics, "dropped") == 2


async def test_a_habit_tells_everything_twice(metrics: Metrics) -> None:
    """Shops must live with that."""
    shop = Shop()
    habits = Habits(duplicate_webhook_rate=1.0)
    async with Server(Address(host="127.0.0.1", port=shop.port), shop), telling(shop, metrics, habits) as telling_it:
        telling_it.tell(charge(), traceparent=TRACEPARENT)
        await wait_until(lambda: len(shop.heard) == 2, what="the second telling")

    assert shop.bodies()[0] == shop.bodies()[1]


async def test_the_process_tells_what_moved_and_nothing_else(tmp_path: Path) -> None:
    """A charge and its refund; no replay, no decline, no void."""
    shop, port = Shop(), free_port()
    environment = {
        "PROVIDER_LISTEN": f"127.0.0.1:{port}",
        "PROVIDER_LEDGER": str(tmp_path / "ledger"),
        "PROVIDER_WEBHOOK_URL": f"http://127.0.0.1:{shop.port}/hooks/provider",
        "PROVIDER_WEBHOOK_SECRET": SECRET,
    }

    async def post(path: str, order: str, amount_minor: int, **more: str) -> None:
        body = {"order_id": order, "amount_minor": amount_minor, "currency": "EUR", **more}
        headers = {"idempotency-key": f"{path}{order}" if more else order}
        await ask(port, "POST", path, body=json.dumps(body).encode(), headers=headers)

    provider = Process("provider", environment, log=tmp_path / "log")
    try:
        async with Server(Address(host="127.0.0.1", port=shop.port), shop):
            await wait_until(lambda: accepts(port), what="the provider listening")
            await post("/charges", "declined", 113)
            await post("/refunds", "declined", 113, charge_key="declined")
            await post("/refunds", "voided", 100, charge_key="voided")
            for _ in range(2):
                await post("/charges", "o1", 1250)
            for _ in range(2):
                await post("/refunds", "o1", 1250, charge_key="o1")
            await wait_until(lambda: len(shop.heard) >= 2, what="both webhooks")
    finally:
        provider.kill()

    assert sorted((str(body["kind"]), str(body["order_id"])) for body in shop.bodies()) == [
        ("captured", "o1"),
        ("refunded", "o1"),
    ]
    assert SECRET not in (tmp_path / "log").read_text()


def test_webhooks_without_a_secret_make_no_sense() -> None:
    """Nobody could tell them from anybody's."""
    with pytest.raises(ConfigurationError, match="PROVIDER_WEBHOOK_SECRET"):
        provider_settings({"PROVIDER_WEBHOOK_URL": "http://127.0.0.1:8081/webhooks/provider"})
