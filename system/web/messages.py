"""Requests and responses, and the responses that say what was wrong as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import msgspec

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"


# msgspec's classes and not dataclasses: making a frozen dataclass takes five times as long.
class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. path: without the query. headers: names in lower case, repeated ones joined by a comma."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """One response; Content-Length, Date and Connection are added on the way out."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Response | Awaitable[Response]]
"""Whoever answers requests, with a response or with something to wait for. A plain function that has its response at
once costs no task, so that is what stands in front of others: probes, limits, descriptions."""


class _Problem(msgspec.Struct, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    order_id: str = ""


def problem(status: int, detail: str, *, order_id: str = "", retry_after_s: int = 0, allow: str = "") -> Response:
    """A problem+json response.

    order_id: the order the problem is about. retry_after_s: when to try again. allow: the methods that would do.
    """
    body = _Problem(
        type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail, order_id=order_id
    )
    headers: tuple[tuple[str, str], ...] = ()
    if retry_after_s:
        headers += (("retry-after", str(retry_after_s)),)
    if allow:
        headers += (("allow", allow),)
    return Response(status=status, body=msgspec.json.encode(body), content_type=PROBLEM_JSON, headers=headers)
