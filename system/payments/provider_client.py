"""The payment provider as payments sees it: one charge, asked for once, inside its CLIENT span.

Promises: the idempotency key of an order is always the same, across attempts, processes and restarts; an outcome is
`Captured` or `Declined` only if the provider said so. Everything that may be better later raises
`ProviderUnavailableError`, be it certain that nothing happened or not: the key makes asking again safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from system import telemetry
from system.events import OrderCreated
from system.web import JSON, Answer, HttpClient, HttpClientError

ATTEMPT_TIMEOUT_S = 5.0
CHARGES_PATH = "/charges"

_CREATED = 201
_REPLAYED = 200
_DECLINED = 402
_TOO_MANY = 429
_SERVER_ERRORS_FROM = 500


class ProviderUnavailableError(Exception):
    """No outcome was had; asking again may bring one."""


class ProviderRefusedError(Exception):
    """The provider will never answer this request otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """The money moved. replayed: it had moved before this request."""

    charge_id: str
    replayed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The card was declined, for good."""

    reason: str


class _Charge(msgspec.Struct):
    order_id: str
    amount_minor: int
    currency: str


class _ChargeAnswer(msgspec.Struct):
    charge_id: str


class _ProblemAnswer(msgspec.Struct):
    detail: str = ""


class ProviderClient:
    """Asks the provider for charges."""

    def __init__(self, http: HttpClient, *, tracer: Tracer) -> None:
        self._http = http
        self._tracer = tracer

    def idempotency_key(self, order: OrderCreated) -> str:
        """The key under which this order is charged, at most once."""
        return order.order_id

    async def charge(self, order: OrderCreated, *, attempt: int) -> Captured | Declined:
        """Ask once for the charge of an order. attempt: 1 for the first, noted on the span."""
        with self._tracer.start_as_current_span(
            f"POST {CHARGES_PATH}",
            kind=SpanKind.CLIENT,
            attributes={
                "http.request.method": "POST",
                "url.path": CHARGES_PATH,
                "http.request.resend_count": attempt - 1,
                "order.id": order.order_id,
            },
            record_exception=False,
        ) as span:
            answer = await self._post(order)
            span.set_attribute("http.response.status_code", answer.status)
            return self._outcome(answer, span)

    async def _post(self, order: OrderCreated) -> Answer:
        headers = {"content-type": JSON, "idempotency-key": self.idempotency_key(order)}
        telemetry.inject(headers)
        body = _Charge(order_id=order.order_id, amount_minor=order.amount_minor, currency=order.currency)
        try:
            return await self._http.post(
                CHARGES_PATH, msgspec.json.encode(body), headers=headers, within_s=ATTEMPT_TIMEOUT_S
            )
        except HttpClientError as error:
            raise ProviderUnavailableError(str(error)) from None

    def _outcome(self, answer: Answer, span: Span) -> Captured | Declined:
        match answer.status:
            case status if status in (_CREATED, _REPLAYED):
                return Captured(charge_id=_charge_id(answer.body), replayed=status == _REPLAYED)
            case status if status == _DECLINED:
                return Declined(reason=_detail(answer.body))
            case status:
                span.set_status(Status(StatusCode.ERROR, f"status {status}"))
                message = f"the provider answered {status}: {_detail(answer.body)}"
                if status == _TOO_MANY or status >= _SERVER_ERRORS_FROM:
                    raise ProviderUnavailableError(message)
                raise ProviderRefusedError(message)


def _charge_id(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_ChargeAnswer).charge_id
    except msgspec.DecodeError as error:
        # It may have charged: only the same key may ask again.
        raise ProviderUnavailableError(f"the provider's answer makes no sense: {error}") from None


def _detail(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_ProblemAnswer).detail
    except msgspec.DecodeError:
        return ""
