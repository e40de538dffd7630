"""HTTP/1.1, both ways: a server for small JSON services, and a client to one server."""

from system.web.admission import Admission, Limits
from system.web.client import HttpClient
from system.web.exchange import Answer, AnswerLostError, HttpClientError, NotSentError
from system.web.messages import JSON, PROBLEM_JSON, Handler, Request, Response, problem
from system.web.openapi import OpenApi
from system.web.server import ListenError, Server

__all__ = [
    "JSON",
    "PROBLEM_JSON",
    "Admission",
    "Answer",
    "AnswerLostError",
    "Handler",
    "HttpClient",
    "HttpClientError",
    "Limits",
    "ListenError",
    "NotSentError",
    "OpenApi",
    "Request",
    "Response",
    "Server",
    "problem",
]
