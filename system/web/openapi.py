"""A service's own description of its HTTP interface, at `GET /openapi.json`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

import msgspec

from system.web.messages import Handler, Request, Response, problem

PATH = "/openapi.json"


class OpenApi:
    """A handler in front of another one that answers what the interface is."""

    def __init__(self, document: Mapping[str, object], handler: Handler) -> None:
        self._body = msgspec.json.encode(document)
        self._handler = handler

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer one request."""
        if request.path != PATH:
            return self._handler(request)
        if request.method not in ("GET", "HEAD"):
            return problem(405, f"{PATH} can only be read", allow="GET, HEAD")
        return Response(status=200, body=self._body)
