"""The HTTP face of orders: `POST /orders` and `GET /orders/{id}`.

Promises: 202 only for what the stream holds; a 4xx published nothing; a 503 with an `order_id` means that nobody can
tell, and asking again with that id as `Idempotency-Key` is safe. Every refusal is a problem document.
"""

from __future__ import annotations

import re
import uuid

import msgspec
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, get_current_span

from system import money, telemetry
from system.jetstream import PublishRefusedError, PublishUnknownError
from system.metrics import Metrics
from system.orders.intake import ConflictError, Intake, NewOrder
from system.orders.recent import TooManyRecentError
from system.orders.store import PENDING, StoredOrder
from system.web import JSON, Request, Response, problem

CUSTOMER_ID_MAX_CHARS = 64
RETRY_AFTER_S = 1
ORDERS_PATH = "/orders"

_ORDER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SERVER_ERRORS_FROM = 500


class RefusedError(Exception):
    """A request that cannot be an order; carries the response that says why."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Body(msgspec.Struct):
    customer_id: str
    total_amount: float
    currency: str = money.DEFAULT_CURRENCY


class _Accepted(msgspec.Struct):
    order_id: str
    status: str


class OrdersApi:
    """Answers requests about orders."""

    def __init__(self, intake: Intake, *, tracer: Tracer, metrics: Metrics) -> None:
        self._intake = intake
        self._tracer = tracer
        self._metrics = metrics
        self._body = msgspec.json.Decoder(_Body)
        self._accepted = metrics.counter("orders_accepted", "Orders answered with 202")

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if request.path == ORDERS_PATH:
            if request.method != "POST":
                return problem(405, f"{ORDERS_PATH} takes POST", allow="POST")
            return await self.place(request)
        order_id = request.path.removeprefix(f"{ORDERS_PATH}/")
        if order_id == request.path or not _ORDER_ID.fullmatch(order_id):
            return problem(404, f"there is nothing at {request.path}")
        if request.method not in ("GET", "HEAD"):
            return problem(405, f"{ORDERS_PATH}/{{id}} takes GET", allow="GET, HEAD")
        return self.show(order_id)

    async def place(self, request: Request) -> Response:
        """`POST /orders`, within a span that continues the caller's trace."""
        with self._tracer.start_as_current_span(
            "POST /orders",
            context=telemetry.extract(request.headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": ORDERS_PATH, "url.path": ORDERS_PATH},
        ) as span:
            try:
                response = await self._accept(self.read(request))
            except RefusedError as refusal:
                response = refusal.response
                self._refused(str(response.status))
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= _SERVER_ERRORS_FROM:
                span.set_status(Status(StatusCode.ERROR))
            return response

    def read(self, request: Request) -> NewOrder:
        """The order a request asks for; `RefusedError` if it asks for none that can be."""
        order_id = request.headers.get("idempotency-key")
        if order_id is not None and not _ORDER_ID.fullmatch(order_id):
            raise RefusedError(problem(400, "Idempotency-Key must be 1 to 64 of A-Z a-z 0-9 _ -"))
        if not _is_json(request.headers.get("content-type", "")):
            raise RefusedError(problem(415, f"the body must be {JSON} in UTF-8"))
        try:
            body = self._body.decode(request.body)
        except msgspec.ValidationError as error:
            raise RefusedError(problem(422, f"the body is not an order: {error}")) from None
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise RefusedError(problem(400, f"the body is not JSON in UTF-8: {error}")) from None
        if not 1 <= len(body.customer_id) <= CUSTOMER_ID_MAX_CHARS:
            raise RefusedError(problem(422, f"customer_id must have 1 to {CUSTOMER_ID_MAX_CHARS} characters"))
        if not money.is_currency(body.currency):
            raise RefusedError(problem(422, "currency must be an ISO 4217 code such as EUR"))
        try:
            amount_minor = money.minor_from_total(body.total_amount)
        except money.AmountError as error:
            raise RefusedError(problem(422, str(error))) from None
        return NewOrder(
            order_id=order_id or uuid.uuid4().hex,
            customer_id=body.customer_id,
            amount_minor=amount_minor,
            currency=body.currency,
        )

    def show(self, order_id: str) -> Response:
        """`GET /orders/{id}`."""
        order: StoredOrder | None = self._intake.find(order_id)
        if order is None:
            return problem(404, f"there is no order {order_id}", order_id=order_id)
        return Response(status=200, body=msgspec.json.encode(order))

    async def _accept(self, new: NewOrder) -> Response:
        telemetry.about_order(new.order_id)
        try:
            await self._intake.accept(new)
        except ConflictError:
            detail = f"there is another order under Idempotency-Key {new.order_id}"
            return self._refuse(problem(409, detail, order_id=new.order_id))
        except TooManyRecentError:
            return self._refuse(
                problem(503, "too many orders are under way; this one was not taken", retry_after_s=RETRY_AFTER_S)
            )
        except PublishRefusedError as error:
            return self._refuse(problem(503, f"the order was not taken: {error}", retry_after_s=RETRY_AFTER_S))
        except PublishUnknownError as error:
            get_current_span().add_event("outcome unknown", {"reason": str(error)})
            detail = "whether the order was taken is unknown; ask for it, or repeat with its id as Idempotency-Key"
            return self._refuse(problem(503, detail, order_id=new.order_id, retry_after_s=RETRY_AFTER_S))
        self._accepted.add()
        return Response(
            status=202,
            body=msgspec.json.encode(_Accepted(order_id=new.order_id, status=PENDING)),
            headers=(("location", f"{ORDERS_PATH}/{new.order_id}"),),
        )

    def _refuse(self, response: Response) -> Response:
        self._refused(str(response.status))
        return response

    def _refused(self, status: str) -> None:
        self._metrics.counter("orders_refused", "Orders not accepted, by status", label="status", value=status).add()


def _is_json(content_type: str) -> bool:
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    return media_type.strip().lower() == JSON and charset in ("", "utf-8", "utf8")
