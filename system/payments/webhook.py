"""`POST /webhooks/provider`: what the provider tells by itself is recorded, so that nobody needs to ask for it.

It helps where an answer was lost: the money moved, the redelivered order finds the row and does not ask again. It
announces nothing: the order's own message does, once it is delivered.

Promises: only what is signed with the shared secret (HMAC-SHA256 of the body, in hex, in `Provider-Signature`) is
looked at; what is answered 204 is durable; the same thing told twice, or told after the answer, changes nothing. A
webhook that was lost costs nothing but a question.
"""

from __future__ import annotations

import hmac
import time
from typing import Literal

import msgspec
from opentelemetry.trace import SpanKind

from system import money, telemetry
from system.database import DatabaseError, DatabaseRowError
from system.events import PaymentStatus
from system.metrics import Metrics
from system.payments.store import Payment, PaymentStore
from system.payments.work import is_order_id
from system.telemetry import LeanTracer, SpanTemplate
from system.web import Request, Response, problem

WEBHOOK_PATH = "/webhooks/provider"
SIGNATURE_HEADER = "provider-signature"
AMOUNT_MAX_MINOR = 2**53
"""As the provider has it."""

_RECEIVED = SpanTemplate(
    f"POST {WEBHOOK_PATH}",
    SpanKind.SERVER,
    {"http.request.method": "POST", "http.route": WEBHOOK_PATH, "url.path": WEBHOOK_PATH},
    ("order.id", "webhook.kind", "http.response.status_code"),
)


class _Told(msgspec.Struct):
    kind: Literal["captured", "refunded"]
    order_id: str
    charge_id: str
    amount_minor: int
    currency: str
    refund_id: str = ""

    def __post_init__(self) -> None:
        if not is_order_id(self.order_id) or not self.charge_id:
            raise ValueError("order_id must be an id, and charge_id must not be empty")
        if not 0 < self.amount_minor <= AMOUNT_MAX_MINOR or not money.is_currency(self.currency):
            raise ValueError(f"amount_minor must be from 1 to {AMOUNT_MAX_MINOR}, currency three capital letters")
        if (self.kind == "refunded") != bool(self.refund_id):
            raise ValueError(f"{self.kind} with refund_id={self.refund_id!r}")

    def as_payment(self) -> Payment:
        """The row that says so."""
        status = PaymentStatus.PAID if self.kind == "captured" else PaymentStatus.REFUNDED
        return Payment(
            self.order_id,
            status.value,
            self.charge_id,
            self.refund_id,
            self.amount_minor,
            self.currency,
            "",
            time.time_ns(),
        )


_decode = msgspec.json.Decoder(_Told).decode


class Webhook:
    """Answers the provider's webhooks, and that there is nothing else. secret: None refuses every webhook."""

    def __init__(self, store: PaymentStore, secret: str | None, *, tracer: LeanTracer, metrics: Metrics) -> None:
        self._store = store
        self._secret = None if secret is None else secret.encode()
        self._tracer = tracer
        self._metrics = metrics

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if request.path != WEBHOOK_PATH or self._secret is None:
            return problem(404, f"there is nothing at {request.path}")
        if request.method != "POST":
            return problem(405, f"{WEBHOOK_PATH} takes POST", allow="POST")
        if not self._is_signed(request, self._secret):
            self._count("refused")
            return problem(401, "the body is not signed, or not with our secret")
        try:
            told = _decode(request.body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self._count("refused")
            return problem(422, f"the body is not what a webhook tells: {error}")
        span = self._tracer.begin(_RECEIVED, telemetry.parent_in(request.headers) or telemetry.ROOT)
        span.activate()
        response: Response | None = None
        try:
            response = await self._record(told)
        finally:
            span.end(told.order_id, told.kind, None if response is None else response.status)
        return response

    async def _record(self, told: _Told) -> Response:
        try:
            await self._store.record(told.as_payment())
        except DatabaseRowError as error:
            self._count("refused")
            return problem(422, f"this cannot be recorded: {error}", order_id=told.order_id)
        except DatabaseError as error:
            self._count("failed")
            return problem(503, f"this could not be recorded: {error}", order_id=told.order_id, retry_after_s=1)
        self._count(told.kind)
        return Response(status=204)

    def _is_signed(self, request: Request, secret: bytes) -> bool:
        given = request.headers.get(SIGNATURE_HEADER, "").strip().lower().encode("latin-1", "replace")
        return hmac.compare_digest(given, hmac.digest(secret, request.body, "sha256").hex().encode())

    def _count(self, outcome: str) -> None:
        self._metrics.counter("webhooks_received", "Webhooks of the provider", label="outcome", value=outcome).add()
