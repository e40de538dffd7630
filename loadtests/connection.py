"""One keep-alive HTTP/1.1 connection on a gevent socket, as lean as it can be without being wrong.

Promises: one request at a time; a bound on the whole of connecting, sending and reading; it never sends a request
twice; it says whether a request that failed can have left this process at all (`NotSentError` when not).

Does not: TLS, redirects, cookies, compression, pooling. Locust's FastHttpUser does these and costs 88-100 µs per
request where this costs 30; and geventhttpclient hides at which stage a request failed, which decides between *failed*
and *unknown*.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools
from gevent import socket

HTTP_PORT = 80
READ_BYTES = 64 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
IDLE_S = 0.02
"""A connection that lay idle for longer is looked at before it is used; that costs 5 µs."""

_INTERIM = 200


class NotSentError(Exception):
    """No connection could be made, so nobody can have received the request."""


class BrokenAnswerError(Exception):
    """The connection ended, or what came is not HTTP, before the answer was whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


class Connection:
    """A connection that is made when needed, kept while it works, and made again after it broke."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect to nothing yet. address: as `resolved` gives it."""
        self._address = address
        self._socket: socket.socket | None = None
        self._idle_since_s = 0.0

    def post(self, request: bytes, *, within_s: float) -> Answer:
        """Send a request and return its answer.

        Raises NotSentError when nothing was sent; TimeoutError, OSError or BrokenAnswerError when nobody can tell.
        """
        deadline_s = time.monotonic() + within_s
        kept = self._kept() or self._connect(within_s)
        reading = _Reading()
        # Whatever ends this early (also the user being killed) leaves half an answer in the socket: never keep it.
        self._socket = None
        try:
            kept.settimeout(_left(deadline_s))
            # Not sendall: a request fits the socket's buffer, and gevent's sendall asks for its size each time.
            sent = kept.send(request)
            if sent < len(request):
                kept.sendall(request[sent:])
            reading.feed(kept.recv(READ_BYTES))
            while not reading.is_whole:
                kept.settimeout(_left(deadline_s))
                reading.feed(kept.recv(READ_BYTES))
        except BaseException:
            kept.close()
            raise
        if reading.keeps_alive:
            self._socket, self._idle_since_s = kept, time.monotonic()
        else:
            kept.close()
        return Answer(reading.status, bytes(reading.body))

    def close(self) -> None:
        """Close it; it may be used again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _kept(self) -> socket.socket | None:
        if self._socket is None or time.monotonic() - self._idle_since_s < IDLE_S:
            return self._socket
        # A server that closed while we were idle has told us so by now: noticing it before anything is sent spares
        # an operation whose outcome nobody could tell.
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self._socket
        except OSError:
            pass
        self.close()
        return None

    def _connect(self, within_s: float) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(within_s)
        try:
            made.connect(self._address)
        except BaseException as error:
            made.close()
            if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                raise
            raise NotSentError(f"cannot connect to {self._address[0]}:{self._address[1]}: {error}") from error
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def resolved(url: str) -> tuple[str, int]:
    """Return a URL's numeric address, IPv4 where there is one.

    Raises ValueError when it is not an http:// URL, OSError when its name is not known.

    Once per test and not once per connection: gevent asks in a thread, and 256 threads handing the interpreter to each
    other stop the whole load for a tenth of a second.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// address")
    found = socket.getaddrinfo(parts.hostname, parts.port or HTTP_PORT, type=socket.SOCK_STREAM)
    best = min(found, key=lambda each: each[0] != socket.AF_INET)
    return str(best[4][0]), int(best[4][1])


class _Reading:
    """One answer on its way in; the callbacks are httptools'."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = False
        self._has_length = False
        self.status = 0
        self.body = bytearray()
        self.keeps_alive = False
        self.is_whole = False

    def feed(self, piece: bytes) -> None:
        if not piece:
            if not self._has_head or self._has_length:
                raise BrokenAnswerError("the connection was closed before the answer was whole")
            self.is_whole = True  # the end of the connection is the end of the body
            return
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserError as error:
            raise BrokenAnswerError(f"the answer is not HTTP: {error}") from error
        if len(self.body) > ANSWER_BYTES_MAX:
            raise BrokenAnswerError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")

    def on_header(self, name: bytes, _value: bytes) -> None:
        self._has_length = self._has_length or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= _INTERIM

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        if self._has_head:
            self.keeps_alive = self._parser.should_keep_alive()
            self.is_whole = True


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the answer did not come in time")
    return left_s
