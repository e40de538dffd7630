"""The HTTP face of orders: `POST /orders`, `GET /orders/{id}` and `POST /orders/{id}/cancel`.

Promises: 202 only for what the stream holds; a 4xx published nothing; a 503 with an `order_id` means that nobody can
tell, and asking again (for an order: with that id as `Idempotency-Key`) is safe; a 503 without one published nothing.
Every refusal is a problem document. `openapi.py` says the same to machines, and a test holds both against each other.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar

import msgspec
from opentelemetry.trace import SpanKind

from system import money, telemetry
from system.database import DatabaseError
from system.jetstream import PublishRefusedError, PublishUnavailableError, PublishUnknownError
from system.metrics import Metrics
from system.orders.intake import (
    ConflictError,
    Intake,
    NewOrder,
    NoSuchOrderError,
    NothingToCancelError,
    NotYetKnownError,
)
from system.orders.recent import TooManyRecentError
from system.orders.store import UNDONE
from system.telemetry import HotSpan, LeanTracer, SpanTemplate
from system.web import JSON, Request, Response, problem

CUSTOMER_ID_MAX_CHARS = 64
REASON_MAX_CHARS = 200
RETRY_AFTER_S = 1
ORDERS_PATH = "/orders"
ORDER_ID_PATTERN = "[A-Za-z0-9_-]{1,64}"

_ORDER_ID = re.compile(ORDER_ID_PATTERN)
_ONE_ORDER = re.compile(f"{ORDERS_PATH}/({ORDER_ID_PATTERN})(/cancel)?")
_SERVER_ERRORS_FROM = 500

_PLACE = SpanTemplate(
    "POST /orders",
    SpanKind.SERVER,
    {"http.request.method": "POST", "http.route": ORDERS_PATH, "url.path": ORDERS_PATH},
    ("order.id", "http.response.status_code"),
)
_CANCEL = SpanTemplate(
    "POST /orders/{id}/cancel",
    SpanKind.SERVER,
    {"http.request.method": "POST", "http.route": "/orders/{id}/cancel"},
    ("order.id", "http.response.status_code", "url.path"),
)

_Read = TypeVar("_Read")


class RefusedError(Exception):
    """A request that is answered with something else than what it asked for; carries the response that says why."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Order(msgspec.Struct):
    customer_id: str
    total_amount: float
    currency: str = money.DEFAULT_CURRENCY


class _Cancellation(msgspec.Struct):
    reason: str = ""


class _Accepted(msgspec.Struct):
    order_id: str
    status: str


class OrdersApi:
    """Answers requests about orders."""

    def __init__(self, intake: Intake, *, tracer: LeanTracer, metrics: Metrics) -> None:
        self._intake = intake
        self._tracer = tracer
        self._metrics = metrics
        self._order = msgspec.json.Decoder(_Order)
        self._cancellation = msgspec.json.Decoder(_Cancellation)
        self._encode = msgspec.json.Encoder().encode
        self._accepted = metrics.counter("orders_accepted", "Orders answered with 202")
        self._cancelled = metrics.counter("cancellations_accepted", "Cancellations answered with 202")
        self._accept_seconds = metrics.histogram(
            "order_accept_seconds", "Time from a whole POST /orders to its answer, whatever it is"
        )

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer one request."""
        if request.path == ORDERS_PATH:
            if request.method != "POST":
                return problem(405, f"{ORDERS_PATH} takes POST", allow="POST")
            return self.place(request)
        found = _ONE_ORDER.fullmatch(request.path)
        if found is None:
            return problem(404, f"there is nothing at {request.path}")
        order_id, is_cancel = found.groups()
        allowed = ("POST",) if is_cancel else ("GET", "HEAD")
        if request.method not in allowed:
            return problem(405, f"{request.path} takes {allowed[0]}", allow=", ".join(allowed))
        return self.cancel(order_id, request) if is_cancel else self.show(order_id)

    async def place(self, request: Request) -> Response:
        """`POST /orders`, within a span that continues the caller's trace."""
        began_s = time.perf_counter()
        span = self._tracer.begin(_PLACE, telemetry.parent_in(request.headers) or telemetry.ROOT)
        span.activate()
        order_id: str | None = None
        response: Response | None = None
        try:
            new = self.read(request)
            order_id = new.order_id
            status = await self._intake.accept(new)
            self._accepted.add()
            response = Response(
                status=202,
                body=self._encode(_Accepted(order_id, status)),
                headers=(("location", f"{ORDERS_PATH}/{order_id}"),),
            )
        except _REFUSALS as error:
            response = _refusal(error, "order", order_id, span)
            self._refused("orders_refused", "Orders not accepted, by status", response)
        finally:
            _end(span, response, order_id)
        self._accept_seconds.observe(time.perf_counter() - began_s)
        return response

    async def cancel(self, order_id: str, request: Request) -> Response:
        """`POST /orders/{id}/cancel`, within a span that continues the caller's trace."""
        span = self._tracer.begin(_CANCEL, telemetry.parent_in(request.headers) or telemetry.ROOT)
        span.activate()
        response: Response | None = None
        try:
            order = await self._intake.cancel(order_id, self.read_reason(request))
            is_undone = order.status in UNDONE
            if not is_undone:
                self._cancelled.add()
            response = Response(
                status=200 if is_undone else 202,
                body=self._encode(_Accepted(order_id, order.status)),
                headers=(("location", f"{ORDERS_PATH}/{order_id}"),),
            )
        except _REFUSALS as error:
            response = _refusal(error, "cancellation", order_id, span)
            self._refused("cancellations_refused", "Cancellations not accepted, by status", response)
        finally:
            _end(span, response, order_id, request.path)
        return response

    async def show(self, order_id: str) -> Response:
        """`GET /orders/{id}`."""
        try:
            order = await self._intake.find(order_id)
        except DatabaseError as error:
            return problem(503, f"orders cannot be read now: {error}", retry_after_s=RETRY_AFTER_S)
        if order is None:
            return problem(404, f"there is no order {order_id}", order_id=order_id)
        return Response(status=200, body=self._encode(order))

    def read(self, request: Request) -> NewOrder:
        """The order a request asks for; `RefusedError` if it asks for none that can be."""
        order_id = request.headers.get("idempotency-key")
        is_named = order_id is not None
        if order_id is None:
            order_id = _new_id()
        elif not _ORDER_ID.fullmatch(order_id):
            raise RefusedError(problem(400, "Idempotency-Key must be 1 to 64 of A-Z a-z 0-9 _ -"))
        body = _body(request, self._order, "an order")
        if not 1 <= len(body.customer_id) <= CUSTOMER_ID_MAX_CHARS or not _is_storable(body.customer_id):
            raise RefusedError(
                problem(422, f"customer_id must have 1 to {CUSTOMER_ID_MAX_CHARS} characters, none of them NUL")
            )
        if not money.is_currency(body.currency):
            raise RefusedError(problem(422, "currency must be an ISO 4217 code such as EUR"))
        try:
            amount_minor = money.minor_from_total(body.total_amount)
        except money.AmountError as error:
            raise RefusedError(problem(422, str(error))) from None
        return NewOrder(
            order_id=order_id,
            is_named=is_named,
            customer_id=body.customer_id,
            amount_minor=amount_minor,
            currency=body.currency,
        )

    def read_reason(self, request: Request) -> str:
        """Why a customer cancels, empty if they do not say; `RefusedError` if the body is no cancellation."""
        if not request.body:
            return ""
        reason = _body(request, self._cancellation, "a cancellation").reason
        if len(reason) > REASON_MAX_CHARS or not _is_storable(reason):
            raise RefusedError(
                problem(422, f"reason must have at most {REASON_MAX_CHARS} characters, none of them NUL")
            )
        return reason

    def _refused(self, name: str, text: str, response: Response) -> None:
        self._metrics.counter(name, text, label="status", value=str(response.status)).add()


_REFUSALS = (
    RefusedError,
    ConflictError,
    NoSuchOrderError,
    NothingToCancelError,
    NotYetKnownError,
    TooManyRecentError,
    DatabaseError,
    PublishRefusedError,
    PublishUnavailableError,
    PublishUnknownError,
)


def _refusal(error: Exception, what: str, order_id: str | None, span: HotSpan) -> Response:
    """The response that says why an order, or a cancellation, was not accepted."""
    match error:
        case RefusedError():
            return error.response
        case ConflictError():
            status, detail = 409, f"there is another order under Idempotency-Key {order_id}"
        case NoSuchOrderError():
            status, detail = 404, f"there is no order {order_id}"
        case NothingToCancelError():
            status, detail = 409, f"order {order_id} was declined: there is nothing to cancel"
        case PublishUnknownError():
            span.event("outcome unknown", {"reason": str(error)})
            status = 503
            detail = f"whether the {what} was taken is unknown; look at the order, or ask again: it is safe"
        case _:
            # No order_id: that would mean that nobody can tell.
            return problem(503, f"the {what} was not taken: {error}", retry_after_s=RETRY_AFTER_S)
    retry_after_s = RETRY_AFTER_S if status >= _SERVER_ERRORS_FROM else 0
    return problem(status, detail, order_id=order_id or "", retry_after_s=retry_after_s)


def _end(span: HotSpan, response: Response | None, order_id: str | None, *more: str) -> None:
    """End the span of a request; no response: something broke, and the log will say what. more: as its template has."""
    if response is None:
        span.fail("no response", order_id, None, *more)
    elif response.status >= _SERVER_ERRORS_FROM:
        span.fail(HTTPStatus(response.status).phrase, order_id, response.status, *more)
    else:
        span.end(order_id, response.status, *more)


def _body(request: Request, decoder: msgspec.json.Decoder[_Read], what: str) -> _Read:
    """The JSON body of a request; `RefusedError` if it is not what it should be."""
    if not _is_json(request.headers.get("content-type", "")):
        raise RefusedError(problem(415, f"the body must be {JSON} in UTF-8"))
    try:
        return decoder.decode(request.body)
    except msgspec.ValidationError as error:
        raise RefusedError(problem(422, f"the body is not {what}: {error}")) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RefusedError(problem(400, f"the body is not JSON in UTF-8: {error}")) from None


def _is_storable(text: str) -> bool:
    # PostgreSQL has no NUL in text.
    return "\0" not in text


def _new_id() -> str:
    """An id nobody else draws. It grows with time: a table takes such keys for a quarter of what others cost."""
    return f"{time.time_ns():016x}{secrets.token_hex(8)}"


def _is_json(content_type: str) -> bool:
    if content_type == JSON:
        return True
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    return media_type.strip().lower() == JSON and charset in {"", "utf-8", "utf8"}
