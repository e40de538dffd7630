"""Telling a shop of captures and refunds: `POST` to one URL, signed, tried again a few times.

    {"kind":"captured","order_id":"..","charge_id":"ch_..","refund_id":"","amount_minor":1250,"currency":"EUR","at_ns":..}

`kind` is `captured` or `refunded`. The header `Provider-Signature` holds the HMAC-SHA256 of the body under the shared
secret, in hex.

Promises: what is told is in the ledger; telling never delays an answer; queue, attempts and waits are bounded. Does
not promise that a shop hears of everything: what finds the queue full, is refused, or fails `ATTEMPTS_MAX` times is
counted and dropped, and what waits when the provider dies is gone. A shop may hear of one thing more than once, and
in any order. Asking for the charge again, under its key, is what always works.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import random
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import msgspec
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from system import telemetry
from system.metrics import Metrics
from system.provider.habits import Behaviour
from system.provider.ledger import Entry
from system.settings import Address
from system.web import JSON, HttpClient, HttpClientError

log = logging.getLogger(__name__)

SIGNATURE_HEADER = "provider-signature"

QUEUE_MAX = 10_000
TELLERS = 8
ATTEMPTS_MAX = 5
ATTEMPT_WITHIN_S = 3.0
BACKOFF_FIRST_S = 0.2
BACKOFF_FACTOR = 2.0
FINISH_WITHIN_S = 1.0
"""How long a stop waits for what is queued."""

_HTTP_PORT = 80
_OK = range(200, 300)
_WORTH_ANOTHER_TRY = frozenset((408, 429, *range(500, 600)))


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """What a shop is told. at_ns: when the money moved, Unix time."""

    kind: Literal["captured", "refunded"]
    order_id: str
    charge_id: str
    refund_id: str
    amount_minor: int
    currency: str
    at_ns: int


class Webhooks:
    """Tells one URL, from `async with` until its end."""

    def __init__(self, url: str, secret: str, behaviour: Behaviour, *, tracer: Tracer, metrics: Metrics) -> None:
        parts = urlsplit(url)
        self._path = parts.path or "/"
        self._http = HttpClient(
            Address(host=parts.hostname or "", port=parts.port or _HTTP_PORT), connections_max=TELLERS
        )
        self._secret = secret.encode()
        self._behaviour = behaviour
        self._tracer = tracer
        self._queue: asyncio.Queue[tuple[Webhook, str]] = asyncio.Queue(QUEUE_MAX)
        self._tasks = asyncio.TaskGroup()
        self._tellers: list[asyncio.Task[None]] = []
        self._told, self._given_up, self._dropped = (
            metrics.counter("webhooks", "Captures and refunds told, or not", label="outcome", value=outcome)
            for outcome in ("told", "given_up", "dropped")
        )

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tellers = [self._tasks.create_task(self._tell_all(), name="webhooks") for _ in range(TELLERS)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell what is queued, within `FINISH_WITHIN_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_WITHIN_S):
                await self._queue.join()
        if not self._queue.empty():
            log.warning("%d webhooks were not told", self._queue.qsize())
        for teller in self._tellers:
            teller.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._http.close()

    def tell(self, entry: Entry, *, traceparent: str) -> None:
        """Tell of a charge or a refund in the ledger, within the trace of whoever asked for it; returns at once."""
        webhook = Webhook(
            kind="refunded" if entry.refund_id else "captured",
            order_id=entry.order_id,
            charge_id=entry.charge_id,
            refund_id=entry.refund_id,
            amount_minor=entry.amount_minor,
            currency=entry.currency,
            at_ns=entry.at_ns,
        )
        try:
            self._queue.put_nowait((webhook, traceparent))
        except asyncio.QueueFull:
            if not self._dropped.value:
                log.warning("%d webhooks wait already: this one is dropped, as others may be", QUEUE_MAX)
            self._dropped.add()

    async def _tell_all(self) -> None:
        while True:
            webhook, traceparent = await self._queue.get()
            try:
                is_told = await self._tell(webhook, traceparent)
                if is_told and self._behaviour.happens(self._behaviour.habits.duplicate_webhook_rate):
                    await self._tell(webhook, traceparent)
            finally:
                self._queue.task_done()

    async def _tell(self, webhook: Webhook, traceparent: str) -> bool:
        """True once the shop took it; False if it is given up."""
        body = msgspec.json.encode(webhook)
        headers = {"content-type": JSON, SIGNATURE_HEADER: signature(self._secret, body)}
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                pause_s = BACKOFF_FIRST_S * BACKOFF_FACTOR ** (attempt - 1)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter is no secret
            status, what = await self._post(webhook, body, headers, traceparent=traceparent, attempt=attempt)
            if status in _OK:
                self._told.add()
                return True
            if status and status not in _WORTH_ANOTHER_TRY:
                break
        self._given_up.add()
        log.warning("the webhook %s of order %s is given up: %s", webhook.kind, webhook.order_id, what)
        return False

    async def _post(
        self, webhook: Webhook, body: bytes, headers: dict[str, str], *, traceparent: str, attempt: int
    ) -> tuple[int, str]:
        """The status of the answer, 0 if there is none; and what to say of it."""
        with self._tracer.start_as_current_span(
            f"POST {self._path}",
            context=telemetry.extract({"traceparent": traceparent}),
            kind=SpanKind.CLIENT,
            attributes={
                "http.request.method": "POST",
                "url.path": self._path,
                "http.request.resend_count": attempt,
                "order.id": webhook.order_id,
                "webhook.kind": webhook.kind,
            },
        ) as span:
            traced = dict(headers)
            telemetry.inject(traced)
            try:
                answer = await self._http.post(self._path, body, headers=traced, within_s=ATTEMPT_WITHIN_S)
            except HttpClientError as error:
                span.set_status(Status(StatusCode.ERROR, str(error)))
                return 0, str(error)
            span.set_attribute("http.response.status_code", answer.status)
            if answer.status not in _OK:
                span.set_status(Status(StatusCode.ERROR))
            return answer.status, f"it was answered {answer.status}"


def signature(secret: bytes, body: bytes) -> str:
    """What proves that a body comes from somebody who knows the secret."""
    return hmac.digest(secret, body, "sha256").hex()
