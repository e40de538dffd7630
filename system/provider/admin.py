"""`/admin/habits`: the provider's unpleasant habits over HTTP.

GET reads them, PUT changes the members it names and leaves the others, DELETE goes back to those of the start; each is
answered with the habits in force. With a token it takes `Authorization: Bearer <token>`, and 401 is the answer to all
others; without one it is open to whoever reaches the address, like the rest of this stand-in.
"""

from __future__ import annotations

import hmac
import logging

import msgspec
from msgspec import structs

from system.provider.habits import Behaviour, HabitsError
from system.web import Request, Response, problem

log = logging.getLogger(__name__)

HABITS_PATH = "/admin/habits"

_SCHEME = "bearer "


class HabitsAdmin:
    """Shows and changes the habits. token: who does not know it is refused; None refuses nobody."""

    def __init__(self, behaviour: Behaviour, *, token: str | None = None) -> None:
        self._behaviour = behaviour
        self._token = token

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        if not self._is_allowed(request):
            refusal = problem(401, f"{HABITS_PATH} takes the provider's admin token")
            return structs.replace(refusal, headers=(("www-authenticate", "Bearer"),))
        match request.method:
            case "GET" | "HEAD":
                return self._in_force()
            case "PUT":
                try:
                    habits = self._behaviour.habits.changed(request.body)
                except HabitsError as error:
                    return problem(422, str(error))
                self._behaviour.adopt(habits)
            case "DELETE":
                self._behaviour.reset()
            case _:
                return problem(405, f"{HABITS_PATH} can be read, put and deleted", allow="GET, HEAD, PUT, DELETE")
        log.info("habits from now on: %s", self._behaviour.habits)
        return self._in_force()

    def _is_allowed(self, request: Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get("authorization", "")
        # Compared in constant time, and as bytes, because a header may hold anything.
        is_bearer = given[: len(_SCHEME)].lower() == _SCHEME
        words = given[len(_SCHEME) :].strip().encode("utf-8", "replace")
        return is_bearer and hmac.compare_digest(words, self._token.encode("ascii"))

    def _in_force(self) -> Response:
        return Response(status=200, body=msgspec.json.encode(self._behaviour.habits))
