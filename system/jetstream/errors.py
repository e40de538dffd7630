"""What can go wrong between us and the broker, as far as the connection itself is concerned."""

from __future__ import annotations

from system.errors import StartError


class ConnectError(StartError):
    """The broker cannot be reached or does not let us in; the message is one sentence for a person."""


class NotConnectedError(Exception):
    """Nothing was sent, because there is no connection to send it through."""


class RequestError(Exception):
    """A request to the broker got no answer."""
