"""The HTTP face of the provider: `POST /charges` with an `Idempotency-Key`.

201 is a new charge, 200 the same body again for a charge made before, 402 a decline, 422 a key that belongs to another
charge, 503 a ledger that cannot be written (nothing was charged).
"""

from __future__ import annotations

import re

import msgspec
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, get_current_span

from system import money, telemetry
from system.metrics import Metrics
from system.provider.cashier import Cashier, ChargeRequest, KeyReusedError
from system.provider.ledger import LedgerError
from system.web import Request, Response, problem

CHARGES_PATH = "/charges"

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SERVER_ERRORS_FROM = 500


class _Body(msgspec.Struct):
    order_id: str
    amount_minor: int
    currency: str


class _Charged(msgspec.Struct):
    charge_id: str
    status: str


class ProviderApi:
    """Answers requests for charges."""

    def __init__(self, cashier: Cashier, *, tracer: Tracer, metrics: Metrics) -> None:
        self._cashier = cashier
        self._tracer = tracer
        self._metrics = metrics
        self._body = msgspec.json.Decoder(_Body)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if request.path != CHARGES_PATH:
            return problem(404, f"there is nothing at {request.path}")
        if request.method != "POST":
            return problem(405, f"{CHARGES_PATH} takes POST", allow="POST")
        with self._tracer.start_as_current_span(
            f"POST {CHARGES_PATH}",
            context=telemetry.extract(request.headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": CHARGES_PATH, "url.path": CHARGES_PATH},
        ) as span:
            response = await self._charge(request)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= _SERVER_ERRORS_FROM:
                span.set_status(Status(StatusCode.ERROR))
            return response

    async def _charge(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        if not _KEY.fullmatch(key):
            return problem(400, "Idempotency-Key must be 1 to 255 visible ASCII characters")
        try:
            body = self._body.decode(request.body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return problem(400, f"the body is not a charge: {error}")
        if not body.order_id or body.amount_minor <= 0 or not money.is_currency(body.currency):
            return problem(422, "a charge needs an order_id, an amount_minor above 0 and a currency")
        telemetry.about_order(body.order_id)
        return await self._decide(
            ChargeRequest(
                idempotency_key=key, order_id=body.order_id, amount_minor=body.amount_minor, currency=body.currency
            )
        )

    async def _decide(self, request: ChargeRequest) -> Response:
        try:
            outcome = await self._cashier.charge(request)
        except KeyReusedError as error:
            self._note("refused")
            return problem(422, str(error), order_id=request.order_id)
        except LedgerError as error:
            self._note("failed")
            return problem(503, f"nothing was charged: {error}", order_id=request.order_id, retry_after_s=1)
        if outcome.entry.kind == "decline":
            self._note("declined")
            return problem(402, "the card was declined", order_id=request.order_id)
        self._note("replayed" if outcome.replayed else "captured")
        body = msgspec.json.encode(_Charged(charge_id=outcome.entry.charge_id, status="captured"))
        return Response(status=200 if outcome.replayed else 201, body=body)

    def _note(self, outcome: str) -> None:
        get_current_span().set_attribute("charge.outcome", outcome)
        self._metrics.counter("charges", "Requests for charges, by outcome", label="outcome", value=outcome).add()
