"""Whether a process is alive and whether it can work, for those who ask over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from system.metrics import Metrics
from system.web import Handler, Request, Response, problem


class Readiness:
    """A list of named conditions, all of which must hold before the process counts as ready."""

    def __init__(self) -> None:
        self._conditions: dict[str, Callable[[], bool]] = {}
        self._is_stopping = False

    def require(self, name: str, condition: Callable[[], bool]) -> None:
        """Be ready only while `condition` holds."""
        self._conditions[name] = condition

    def stop(self) -> None:
        """Never be ready again."""
        self._is_stopping = True

    def missing(self) -> list[str]:
        """What keeps the process from being ready; empty when it is."""
        if self._is_stopping:
            return ["stopping"]
        return [name for name, condition in self._conditions.items() if not condition()]


class Probes:
    """`/healthz`, `/readyz` and `/metrics` before an application's own paths."""

    def __init__(self, readiness: Readiness, metrics: Metrics, application: Handler) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._application = application

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer a probe, or let the application answer."""
        if request.path not in ("/healthz", "/readyz", "/metrics"):
            return self._application(request)
        if request.method not in ("GET", "HEAD"):
            return problem(405, f"{request.path} can only be read", allow="GET, HEAD")
        if request.path == "/metrics":
            return Response(status=200, body=self._metrics.rendered(), content_type=Metrics.CONTENT_TYPE)
        if request.path == "/healthz":
            return Response(status=200, body=b'{"status":"alive"}')
        missing = self._readiness.missing()
        body = msgspec.json.encode({"ready": not missing, "missing": missing})
        return Response(status=503 if missing else 200, body=body)


def nothing_else(request: Request) -> Response:
    """The application of a service that has no paths of its own."""
    return problem(404, f"there is nothing at {request.path}")
