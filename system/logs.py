"""What a process says: one line per event on standard error, each with the trace it belongs to.

As text, or with `LOG_FORMAT=json` as one JSON object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`,
`service`, `trace_id` and `span_id` (of the current span; absent outside of one), `exception`.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime

import msgspec

from system.settings import LogSettings
from system.telemetry import current

_TEXT = "%(asctime)s %(levelname)s %(name)s trace_id=%(trace_id)s span_id=%(span_id)s: %(message)s"
_NONE = "-"


def configure(settings: LogSettings, *, service: str) -> None:
    """Log to standard error from now on. service: the process's name in JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_in_trace)
    handler.setFormatter(_JsonLines(service) if settings.is_json else _text())
    logging.basicConfig(level=settings.level, handlers=[handler], force=True)


def _in_trace(record: logging.LogRecord) -> bool:
    """Note the span that the line belongs to, which is the current one of the task that logs."""
    span = current()
    if span is None:
        record.trace_id = record.span_id = _NONE
    else:
        parent = span.as_parent()
        record.trace_id, record.span_id = parent.trace_id.hex(), parent.span_id.hex()
    return True


def _text() -> logging.Formatter:
    formatter = logging.Formatter(_TEXT)
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    return formatter


class _Line(msgspec.Struct, omit_defaults=True):
    time: str
    level: str
    logger: str
    message: str
    service: str
    trace_id: str = ""
    span_id: str = ""
    exception: str = ""


class _JsonLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        trace_id, span_id = str(vars(record)["trace_id"]), str(vars(record)["span_id"])
        line = _Line(
            time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            level=record.levelname,
            logger=record.name,
            message=_unicode(record.getMessage()),
            service=self._service,
            trace_id="" if trace_id == _NONE else trace_id,
            span_id="" if span_id == _NONE else span_id,
            exception=_unicode(self.formatException(record.exc_info)) if record.exc_info else "",
        )
        return msgspec.json.encode(line).decode()


def _unicode(text: str) -> str:
    """The text without what cannot be written: a line with a mark in it is better than none."""
    return text.encode("utf-8", "backslashreplace").decode()
