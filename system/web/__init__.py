"""HTTP/1.1, both ways: a server for small JSON services, and a client to one server."""

from system.web.client import Answer, AnswerLostError, HttpClient, HttpClientError, NotSentError
from system.web.messages import JSON, Handler, Request, Response, problem
from system.web.server import ListenError, Server

__all__ = [
    "JSON",
    "Answer",
    "AnswerLostError",
    "Handler",
    "HttpClient",
    "HttpClientError",
    "ListenError",
    "NotSentError",
    "Request",
    "Response",
    "Server",
    "problem",
]
