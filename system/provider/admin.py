"""`/admin/habits`: the provider's unpleasant habits over HTTP.

GET reads them, PUT changes the members it names and leaves the others, DELETE goes back to those of the start; each is
answered with the habits in force. Like the rest of this stand-in it is open to whoever reaches its address.
"""

from __future__ import annotations

import logging

import msgspec

from system.provider.habits import Behaviour, HabitsError
from system.web import Request, Response, problem

log = logging.getLogger(__name__)

HABITS_PATH = "/admin/habits"


class HabitsAdmin:
    """Shows and changes the habits."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def answer(self, request: Request) -> Response:
        """Answer one request."""
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

    def _in_force(self) -> Response:
        return Response(status=200, body=msgspec.json.encode(self._behaviour.habits))
