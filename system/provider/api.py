"""The HTTP face of the provider: `POST /charges` and `POST /refunds`, each with an `Idempotency-Key`.

| answer | to a charge | to a refund |
|---|---|---|
| 201 | captured now | `refunded` now, or `voided`: it was never charged, and never will be under that key |
| 200 | captured before | refunded or voided before; `declined`: there is nothing to undo |
| 402 | declined, for good | |
| 409 | a problem of the type `voided`: the charge was ruled out before it was made | |
| 400, 422 | not a charge; a key that belongs to something else | likewise, and an amount that is not the charge's |
| 503 | the ledger cannot be written: nothing moved | likewise |
| 500 | nobody can tell whether the money moved | likewise |

What else a request may meet (429, 500, a wait, no answer at all) is a habit, and told in `habits.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec
from opentelemetry.trace import SpanKind

from system import telemetry
from system.metrics import Metrics, Number
from system.provider.admin import HABITS_PATH, HabitsAdmin
from system.provider.cashier import Cashier, ChargeRequest, KeyReusedError, Outcome, RefundRequest, VoidedError
from system.provider.habits import Behaviour
from system.provider.ledger import Entry, Kind, LedgerError, LedgerUnknownError
from system.provider.reading import RefusedError, charge_in, refund_in
from system.provider.webhooks import Webhooks
from system.telemetry import LeanTracer, SpanTemplate
from system.web import Request, Response, problem
from system.web.messages import PROBLEM_JSON

CHARGES_PATH = "/charges"
REFUNDS_PATH = "/refunds"

_SERVER_ERRORS_FROM = 500


def _span(path: str, outcome: str) -> SpanTemplate:
    return SpanTemplate(
        f"POST {path}",
        SpanKind.SERVER,
        {"http.request.method": "POST", "http.route": path, "url.path": path},
        ("order.id", outcome, "http.response.status_code"),
    )


_CHARGE_SPAN = _span(CHARGES_PATH, "charge.outcome")
_REFUND_SPAN = _span(REFUNDS_PATH, "refund.outcome")
_UNDONE: dict[Kind, str] = {"refund": "refunded", "void": "voided", "decline": "declined"}


class _Charged(msgspec.Struct):
    charge_id: str
    status: str = "captured"


class _Undone(msgspec.Struct, omit_defaults=True):
    status: str
    refund_id: str = ""
    charge_id: str = ""


class _Voided(msgspec.Struct):
    detail: str
    order_id: str
    type: str = "voided"
    title: str = "Conflict"
    status: int = 409


class _Done(msgspec.Struct):
    """How a request ended.

    word: what spans and metrics call it. moved: the entry in the ledger if money moved now. is_answered: False if the
    client shall never know.
    """

    response: Response
    word: str
    order_id: str | None = None
    moved: Entry | None = None
    is_answered: bool = True


class ProviderApi:
    """Answers requests for charges and refunds.

    webhooks: None tells nobody. admin_token: what changing habits takes, None for nothing.
    """

    def __init__(
        self,
        cashier: Cashier,
        behaviour: Behaviour,
        *,
        tracer: LeanTracer,
        metrics: Metrics,
        webhooks: Webhooks | None = None,
        admin_token: str | None = None,
    ) -> None:
        self._cashier = cashier
        self._behaviour = behaviour
        self._admin = HabitsAdmin(behaviour, token=admin_token)
        self._tracer = tracer
        self._metrics = metrics
        self._webhooks = webhooks
        self._counts: dict[tuple[str, str], Number] = {}
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer one request."""
        path = request.path
        if path == HABITS_PATH:
            return self._admin.answer(request)
        if path not in (CHARGES_PATH, REFUNDS_PATH):
            return problem(404, f"there is nothing at {path}")
        if request.method != "POST":
            return problem(405, f"{path} takes POST", allow="POST")
        if path == CHARGES_PATH:
            return self._answer(request, _CHARGE_SPAN, "charges")
        return self._answer(request, _REFUND_SPAN, "refunds")

    async def _answer(self, request: Request, template: SpanTemplate, name: str) -> Response:
        span = self._tracer.begin(template, telemetry.parent_in(request.headers) or telemetry.ROOT)
        try:
            done = await self._serve(request)
        except BaseException as error:
            span.fail(f"{type(error).__name__}: {error}")
            raise
        if done.moved is not None and self._webhooks is not None:
            self._webhooks.tell(done.moved, traceparent=span.traceparent)
        if not done.is_answered:
            span.end(done.order_id, done.word)
        elif done.response.status >= _SERVER_ERRORS_FROM:
            span.fail("", done.order_id, done.word, done.response.status)
        else:
            span.end(done.order_id, done.word, done.response.status)
        self._count(name, done.word)
        if not done.is_answered:
            await self._behaviour.never_answer()
        return done.response

    async def _serve(self, request: Request) -> _Done:
        try:
            asked = charge_in(request) if request.path == CHARGES_PATH else refund_in(request)
        except RefusedError as error:
            return _Done(problem(error.status, str(error)), "refused")
        if not self._behaviour.is_plain and (met := await self._meet_habits(asked.order_id)):
            return met
        try:
            if isinstance(asked, RefundRequest):
                done = self._undone(await self._cashier.refund(asked))
            else:
                done = self._charged(await self._cashier.charge(asked))
        except (KeyReusedError, VoidedError, LedgerError) as error:
            return self._not_done(asked, error)
        behaviour = self._behaviour
        if not behaviour.is_plain and behaviour.happens(behaviour.habits.charge_then_timeout_rate):
            done.response, done.is_answered = _too_late("it was decided", asked.order_id), False
        return done

    def _charged(self, outcome: Outcome) -> _Done:
        entry = outcome.entry
        if entry.kind == "decline":
            return _Done(problem(402, "the card was declined", order_id=entry.order_id), "declined", entry.order_id)
        body = self._encode(_Charged(entry.charge_id))
        if outcome.replayed:
            return _Done(Response(status=200, body=body), "replayed", entry.order_id)
        return _Done(Response(status=201, body=body), "captured", entry.order_id, entry)

    def _undone(self, outcome: Outcome) -> _Done:
        entry = outcome.entry
        word = _UNDONE[entry.kind]
        body = self._encode(_Undone(status=word, refund_id=entry.refund_id, charge_id=entry.charge_id))
        if outcome.replayed:
            word = word if entry.kind == "decline" else "replayed"
            return _Done(Response(status=200, body=body), word, entry.order_id)
        return _Done(Response(status=201, body=body), word, entry.order_id, entry if entry.kind == "refund" else None)

    def _not_done(self, asked: ChargeRequest, error: KeyReusedError | VoidedError | LedgerError) -> _Done:
        order_id = asked.order_id
        match error:
            case KeyReusedError():
                return _Done(problem(422, str(error), order_id=order_id), "refused", order_id)
            case VoidedError():
                body = self._encode(_Voided(detail=str(error), order_id=order_id))
                return _Done(Response(status=409, body=body, content_type=PROBLEM_JSON), "voided", order_id)
            case LedgerUnknownError():
                told = problem(500, f"whether the money moved is unknown: {error}", order_id=order_id)
            case LedgerError():
                told = problem(503, f"nothing moved: {error}", order_id=order_id, retry_after_s=1)
        return _Done(told, "failed", order_id)

    async def _meet_habits(self, order_id: str) -> _Done | None:
        """What becomes of a request before anybody looks at what it asks for; None if it is looked at now."""
        behaviour, habits = self._behaviour, self._behaviour.habits
        if habits.silent:
            return _Done(_too_late("nothing moved", order_id), "silent", order_id, is_answered=False)
        if behaviour.happens(habits.error_rate):
            return _Done(problem(500, "the provider failed; nothing moved", order_id=order_id), "error", order_id)
        if behaviour.happens(habits.too_many_rate):
            told = problem(429, "too many requests; nothing moved", order_id=order_id, retry_after_s=1)
            return _Done(told, "too_many", order_id)
        if await behaviour.think():
            return None
        told = problem(503, "the provider stops; nothing moved", order_id=order_id, retry_after_s=1)
        return _Done(told, "stopped", order_id)

    def _count(self, name: str, word: str) -> None:
        number = self._counts.get((name, word))
        if number is None:
            text = f"Requests for {name}, by outcome"
            number = self._counts[name, word] = self._metrics.counter(name, text, label="outcome", value=word)
        number.add()


def _too_late(what: str, order_id: str) -> Response:
    """What a client is told that should never have been told anything, because the provider stops."""
    return problem(504, f"no answer was to come, and the provider stops now; {what}", order_id=order_id)
