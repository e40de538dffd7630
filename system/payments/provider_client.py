"""The payment provider as payments sees it: one request, made once, inside its CLIENT span.

Promises: the idempotency keys of an order are always the same, across attempts, processes and restarts; an outcome is
what the provider said, and nothing else is taken for one. Everything that may be better later raises
`ProviderUnavailableError`, be it certain that nothing happened or not: the key makes asking again safe. Only what the
provider itself finds wrong with a request, 400 or 422 with its reasons, raises `ProviderRefusedError`: a login, a path
or a proxy that is wrong today is no order's fault.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from opentelemetry.trace import SpanKind

from system.events import OrderCreated
from system.telemetry import LeanTracer, SpanTemplate
from system.web import JSON, Answer, HttpClient, HttpClientError, NotSentError

WITHIN_S = 5.0
CHARGES_PATH = "/charges"
REFUNDS_PATH = "/refunds"

_CREATED = 201
_REPLAYED = 200
_CAPTURED = "captured"
_DECLINED = 402
_CONFLICT = 409
_WRONG = frozenset({400, 422})
_TOO_MANY = 429
_SERVER_ERRORS_FROM = 500

_VARYING = ("order.id", "http.request.resend_count", "http.response.status_code")
_CHARGE, _REFUND = (
    SpanTemplate(f"POST {path}", SpanKind.CLIENT, {"http.request.method": "POST", "url.path": path}, _VARYING)
    for path in (CHARGES_PATH, REFUNDS_PATH)
)

_T = TypeVar("_T")


class ProviderUnavailableError(Exception):
    """No outcome was had; asking again may bring one. reason: a word for it, for counting."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ProviderRefusedError(Exception):
    """The provider will never answer this request otherwise."""


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """The money moved. replayed: it had moved before this request."""

    charge_id: str
    replayed: bool


class Declined(msgspec.Struct, frozen=True, kw_only=True):
    """The card was declined, for good."""

    reason: str


class Voided(msgspec.Struct, frozen=True, kw_only=True):
    """The charge is ruled out: it was never made, and never will be."""


class Refunded(msgspec.Struct, frozen=True, kw_only=True):
    """The money was given back. charge_id: of what was taken."""

    refund_id: str
    charge_id: str


ChargeOutcome = Captured | Declined | Voided
RefundOutcome = Refunded | Declined | Voided


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be undone: the money of one order. amount_minor: hundredths of the currency."""

    order_id: str
    amount_minor: int
    currency: str


class _Charge(msgspec.Struct):
    order_id: str
    amount_minor: int
    currency: str


class _Refund(_Charge):
    charge_key: str


class _Charged(msgspec.Struct):
    charge_id: str
    status: str


class _Undone(msgspec.Struct):
    status: str
    refund_id: str = ""
    charge_id: str = ""


class _Problem(msgspec.Struct):
    detail: str = ""
    type: str = ""


_encode = msgspec.json.Encoder().encode
_decode_charged = msgspec.json.Decoder(_Charged).decode
_decode_undone = msgspec.json.Decoder(_Undone).decode
_decode_problem = msgspec.json.Decoder(_Problem).decode


class ProviderClient:
    """Asks the provider. within_s: how long an answer may take."""

    def __init__(self, http: HttpClient, *, tracer: LeanTracer, within_s: float = WITHIN_S) -> None:
        self._http = http
        self._tracer = tracer
        self._within_s = within_s

    def idempotency_key(self, order: OrderCreated | Bill) -> str:
        """The key under which this order is charged, at most once."""
        return order.order_id

    def refund_key(self, bill: Bill) -> str:
        """The key under which this order is undone, at most once."""
        return f"refund:{bill.order_id}"

    def charge(self, order: OrderCreated, *, attempt: int) -> Awaitable[ChargeOutcome]:
        """Ask once for the charge of an order. attempt: 1 for the first, noted on the span."""
        body = _Charge(order.order_id, order.amount_minor, order.currency)
        return self._post(_CHARGE, CHARGES_PATH, body, self.idempotency_key(order), attempt, _charge_outcome)

    def refund(self, bill: Bill, *, attempt: int) -> Awaitable[RefundOutcome]:
        """Ask once for the undoing of an order's charge, made or not."""
        body = _Refund(bill.order_id, bill.amount_minor, bill.currency, charge_key=self.idempotency_key(bill))
        return self._post(_REFUND, REFUNDS_PATH, body, self.refund_key(bill), attempt, _refund_outcome)

    async def _post(
        self, template: SpanTemplate, path: str, body: _Charge, key: str, attempt: int, outcome: Callable[[Answer], _T]
    ) -> _T:
        span = self._tracer.begin(template)
        headers = {"content-type": JSON, "idempotency-key": key}
        span.inject(headers)
        status: int | None = None
        failure: str | None = "abandoned"
        try:
            answer = await self._http.post(path, _encode(body), headers=headers, within_s=self._within_s)
            status = answer.status
            found = outcome(answer)
            failure = None
        except HttpClientError as error:
            failure = str(error)
            reason = "not_sent" if isinstance(error, NotSentError) else "answer_lost"
            raise ProviderUnavailableError(failure, reason=reason) from None
        except (ProviderUnavailableError, ProviderRefusedError) as error:
            failure = str(error)
            raise
        finally:
            if failure is None:
                span.end(body.order_id, attempt - 1, status)
            else:
                span.fail(failure, body.order_id, attempt - 1, status)
        return found


def _charge_outcome(answer: Answer) -> ChargeOutcome:
    status = answer.status
    try:
        if status in (_CREATED, _REPLAYED):
            charged = _decode_charged(answer.body)
            if charged.status != _CAPTURED or not charged.charge_id:
                raise _nonsense(f"a charge that is {charged.status!r}, called {charged.charge_id!r}")
            return Captured(charge_id=charged.charge_id, replayed=status == _REPLAYED)
        if status == _DECLINED:
            return Declined(reason=_decode_problem(answer.body).detail)
        if status == _CONFLICT and _problem(answer).type == "voided":
            return Voided()
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _nonsense(error) from None
    raise _no_outcome(answer)


def _refund_outcome(answer: Answer) -> RefundOutcome:
    if answer.status not in (_CREATED, _REPLAYED):
        raise _no_outcome(answer)
    try:
        undone = _decode_undone(answer.body)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _nonsense(error) from None
    match undone.status:
        case "refunded" if undone.refund_id:
            return Refunded(refund_id=undone.refund_id, charge_id=undone.charge_id)
        case "voided":
            return Voided()
        case "declined":
            return Declined(reason="the card had been declined")
    raise _nonsense(f"an undoing that is {undone.status!r}, with the refund {undone.refund_id!r}")


def _no_outcome(answer: Answer) -> ProviderUnavailableError | ProviderRefusedError:
    told = _problem(answer)
    message = f"the provider answered {answer.status}: {told.detail}"
    if answer.status in _WRONG and told.detail:
        return ProviderRefusedError(message)
    if answer.status == _TOO_MANY:
        return ProviderUnavailableError(message, reason="too_many")
    if answer.status >= _SERVER_ERRORS_FROM:
        return ProviderUnavailableError(message, reason="server_error")
    return ProviderUnavailableError(message, reason="unexpected")


def _nonsense(what: object) -> ProviderUnavailableError:
    # Money may have moved: only the same key may ask again.
    return ProviderUnavailableError(f"the provider's answer makes no sense: {what}", reason="nonsense")


def _problem(answer: Answer) -> _Problem:
    try:
        return _decode_problem(answer.body)
    except (msgspec.DecodeError, UnicodeError):
        return _Problem()
