"""What the HTTP face of orders takes and answers, as an OpenAPI 3.1 document for machines.

Promises: the bounds in it are those of the code, and every status that the service can answer is in it; a test lets
schemathesis hold the running service against it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from system import money
from system.orders.api import CUSTOMER_ID_MAX_CHARS, ORDER_ID_PATTERN, REASON_MAX_CHARS
from system.orders.store import STATUSES, StoredOrder
from system.web import JSON
from system.web.messages import PROBLEM_JSON

VERSION = "1.0.0"

_Json = dict[str, Any]

_NO_NUL = "^[^\\u0000]*$"
_INT64 = {"type": "integer", "format": "int64"}

# Any request can be one of these: not HTTP, too slow, too large, too many, or come while the service stops.
_EVERYWHERE = (400, 408, 413, 431, 503)


def document() -> _Json:
    """The document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orders",
            "version": VERSION,
            "description": "Takes orders, tells what became of them, and takes them back.",
        },
        "paths": {
            "/orders": {"post": _place()},
            "/orders/{order_id}": {"get": _show()},
            "/orders/{order_id}/cancel": {"post": _cancel()},
            "/healthz": {"get": _probe("alive", "The process lives.", _object(status=_enum("alive")))},
            "/readyz": {"get": _readiness()},
            "/metrics": {"get": _metrics()},
        },
        "components": {"schemas": _schemas(), "headers": _headers()},
    }


def _place() -> _Json:
    return {
        "operationId": "placeOrder",
        "summary": "Place an order",
        "description": "202 once the order is stored. Repeating a request under the same Idempotency-Key is safe.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Becomes the order's id; the same key is the same order for ever.",
                "schema": {"$ref": "#/components/schemas/OrderId"},
            }
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/NewOrder"}}}},
        "responses": {
            "202": _accepted("The order is stored, or was before.", "showOrder"),
            **_problems(
                {
                    409: "There is another order under this Idempotency-Key.",
                    415: "The body is not JSON in UTF-8.",
                    422: "The body is not an order.",
                    429: "More orders in a second than are taken.",
                    503: "With an order_id: whether the order was taken is unknown, ask again under this id. "
                    "Without: it was not taken.",
                }
            ),
        },
    }


def _show() -> _Json:
    return {
        "operationId": "showOrder",
        "summary": "Show an order",
        "parameters": [_ORDER_ID],
        "responses": {
            "200": {
                "description": "The order as it is now.",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Order"}}},
            },
            **_problems({404: "There is no such order."}),
        },
    }


def _cancel() -> _Json:
    return {
        "operationId": "cancelOrder",
        "summary": "Cancel an order",
        "description": "The order ends CANCELLED if it was not charged, REFUNDED if it was, and stays DECLINED if it "
        "is declined in the meantime. Asking again is safe.",
        "parameters": [_ORDER_ID],
        "requestBody": {
            "required": False,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Cancellation"}}},
        },
        "responses": {
            "200": _accepted("The order is cancelled or refunded already.", "showOrder"),
            "202": _accepted("The cancellation is stored, or was before; the status is that of now.", "showOrder"),
            **_problems(
                {
                    404: "There is no such order.",
                    409: "The order was declined: there is nothing to cancel.",
                    415: "The body is not JSON in UTF-8.",
                    422: "The body is not a cancellation.",
                    429: "More requests in a second than are taken.",
                    503: "With an order_id: whether the cancellation was taken is unknown, ask again. "
                    "Without: it was not taken.",
                }
            ),
        },
    }


def _probe(name: str, description: str, schema: _Json) -> _Json:
    return {
        "operationId": name,
        "summary": description,
        "responses": {"200": {"description": description, "content": {JSON: {"schema": schema}}}, **_problems({})},
    }


def _readiness() -> _Json:
    said = _object(ready={"type": "boolean"}, missing={"type": "array", "items": {"type": "string"}})
    return {
        "operationId": "ready",
        "summary": "Whether the process can work",
        "responses": {
            "200": {"description": "It can.", "content": {JSON: {"schema": said}}},
            **_problems({}),
            "503": {
                "description": "It cannot: what is missing.",
                "content": {JSON: {"schema": said}, PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }


def _metrics() -> _Json:
    return {
        "operationId": "metrics",
        "summary": "Metrics in the Prometheus text format",
        "responses": {
            "200": {"description": "All metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **_problems({}),
        },
    }


_ORDER_ID: _Json = {
    "name": "order_id",
    "in": "path",
    "required": True,
    "schema": {"$ref": "#/components/schemas/OrderId"},
}


def _accepted(description: str, link: str) -> _Json:
    return {
        "description": description,
        "headers": {"Location": {"$ref": "#/components/headers/Location"}},
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Accepted"}}},
        "links": {link: {"operationId": link, "parameters": {"order_id": "$response.body#/order_id"}}},
    }


def _problems(own: dict[int, str]) -> _Json:
    descriptions = {status: HTTPStatus(status).phrase for status in _EVERYWHERE} | own
    return {
        str(status): {
            "description": description,
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **(
                {"headers": {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}}
                if status in {429, 503}
                else {}
            ),
        }
        for status, description in sorted(descriptions.items())
    }


def _headers() -> _Json:
    return {
        "Location": {"description": "Where the order is.", "required": True, "schema": {"type": "string"}},
        "RetryAfter": {
            "description": "Seconds to wait before asking again.",
            "required": True,
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        },
    }


def _schemas() -> _Json:
    order = _object(
        order_id={"$ref": "#/components/schemas/OrderId"},
        customer_id={"type": ["string", "null"]},
        amount_minor={**_INT64, "description": "Hundredths of the currency."},
        currency={"type": "string"},
        status=_enum(*STATUSES),
        created_at_ns=_or_null(_INT64),
        settled_at_ns=_or_null(_INT64),
        payment_id={"type": ["string", "null"]},
        refund_id={"type": ["string", "null"]},
        reason={"type": ["string", "null"], "description": "Why it was declined, cancelled or refunded."},
    )
    if tuple(order["properties"]) != StoredOrder.__struct_fields__:
        raise AssertionError(f"an order has {StoredOrder.__struct_fields__}, the document says otherwise")
    return {
        # Length as well as pattern: `$` also matches before a line's end.
        "OrderId": {"type": "string", "pattern": f"^{ORDER_ID_PATTERN}$", "minLength": 1, "maxLength": 64},
        "NewOrder": {
            "type": "object",
            "required": ["customer_id", "total_amount"],
            "properties": {
                "customer_id": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": CUSTOMER_ID_MAX_CHARS,
                    "pattern": _NO_NUL,
                },
                "total_amount": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "maximum": money.AMOUNT_MAX,
                    "multipleOf": 1 / money.MINOR_PER_UNIT,
                },
                "currency": {
                    "type": "string",
                    "pattern": "^[A-Z]{3}$",
                    "minLength": 3,
                    "maxLength": 3,
                    "default": money.DEFAULT_CURRENCY,
                },
            },
        },
        "Cancellation": {
            "type": "object",
            "properties": {"reason": {"type": "string", "maxLength": REASON_MAX_CHARS, "pattern": _NO_NUL}},
        },
        "Accepted": _object(order_id={"$ref": "#/components/schemas/OrderId"}, status=_enum(*STATUSES)),
        "Order": order,
        "Problem": {
            "type": "object",
            "description": "RFC 9457",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "order_id": {"$ref": "#/components/schemas/OrderId"},
            },
        },
    }


def _object(**properties: _Json) -> _Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _enum(*values: str) -> _Json:
    return {"type": "string", "enum": list(values)}


def _or_null(schema: _Json) -> _Json:
    return {**schema, "type": [schema["type"], "null"]}
