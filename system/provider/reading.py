"""What a request for a charge or a refund must look like; everything else is refused before anybody looks at money."""

from __future__ import annotations

import re

import msgspec

from system import money
from system.provider.cashier import ChargeRequest, RefundRequest
from system.web import Request

ID_MAX_LENGTH = 255
AMOUNT_MAX_MINOR = 2**53
"""Beyond it, readers of JSON that know only doubles would read another amount."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class RefusedError(Exception):
    """The request is no request for a charge or a refund. status: of the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _ChargeBody(msgspec.Struct):
    order_id: str
    amount_minor: int
    currency: str


class _RefundBody(_ChargeBody):
    charge_key: str


_decode_charge = msgspec.json.Decoder(_ChargeBody).decode
_decode_refund = msgspec.json.Decoder(_RefundBody).decode


def charge_in(request: Request) -> ChargeRequest:
    """The charge that is asked for; `RefusedError` if it is none."""
    key = _key_in(request)
    try:
        body = _decode_charge(request.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RefusedError(400, f"the body is not a charge: {error}") from None
    order_id = _checked_order_id(body)
    return ChargeRequest(
        idempotency_key=key,
        # Usually one text; it is kept for ever, so it is kept once.
        order_id=key if order_id == key else order_id,
        amount_minor=body.amount_minor,
        currency=body.currency,
    )


def refund_in(request: Request) -> RefundRequest:
    """The refund that is asked for; `RefusedError` if it is none."""
    key = _key_in(request)
    try:
        body = _decode_refund(request.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RefusedError(400, f"the body is not a refund: {error}") from None
    order_id = _checked_order_id(body)
    if not _KEY.fullmatch(body.charge_key):
        raise RefusedError(422, "charge_key must be what an Idempotency-Key can be, for it is that of the charge")
    return RefundRequest(
        idempotency_key=key,
        order_id=order_id,
        amount_minor=body.amount_minor,
        currency=body.currency,
        charge_key=body.charge_key,
    )


def _key_in(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if not _KEY.fullmatch(key):
        raise RefusedError(400, "Idempotency-Key must be 1 to 255 visible ASCII characters")
    return key


def _checked_order_id(body: _ChargeBody) -> str:
    """The order's id, once everything else is right as well."""
    if not 0 < len(body.order_id) <= ID_MAX_LENGTH:
        raise RefusedError(422, f"order_id must have 1 to {ID_MAX_LENGTH} characters")
    if not 0 < body.amount_minor <= AMOUNT_MAX_MINOR:
        raise RefusedError(422, f"amount_minor must be from 1 to {AMOUNT_MAX_MINOR}")
    if not money.is_currency(body.currency):
        raise RefusedError(422, "currency must be three capital letters")
    return body.order_id
