"""Log lines: each says which trace it belongs to, as text or as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind

from system import logs
from system.metrics import Metrics
from system.settings import LogSettings, TelemetrySettings
from system.telemetry import SpanTemplate, Telemetry
from system.tests.parts import Process, accepts, free_port, wait_until

TEMPLATE = SpanTemplate("work", SpanKind.INTERNAL)
log = logging.getLogger("system.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def telemetry(metrics: Metrics) -> Telemetry:
    """A tracer whose spans go nowhere."""
    return Telemetry(TelemetrySettings(service_name="test", endpoint=None, spool_directory=None), metrics)


def test_a_line_within_a_span_carries_its_trace_and_one_outside_says_none(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    """P10: whoever has a line finds the order, and the other way round."""
    logs.configure(LogSettings(level="INFO", is_json=False), service="test")

    async def work() -> str:
        span = telemetry.tracer.begin(TEMPLATE)
        span.activate()
        log.info("within")
        span.end()
        return f"trace_id={span.trace_id.hex()} span_id={span.span_id.hex()}: within"

    expected = asyncio.run(work())
    log.info("outside")

    within, outside = capsys.readouterr().err.splitlines()
    assert within.endswith(expected)
    assert outside.endswith("trace_id=- span_id=-: outside")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO system\.test ", within)


def test_a_span_of_the_api_gives_its_trace_to_lines_as_well(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both kinds of span are the current one in the same way, and the outer one is it again afterwards."""
    logs.configure(LogSettings(level="INFO", is_json=False), service="test")

    with telemetry.tracer.start_as_current_span("outer") as outer, telemetry.tracer.start_as_current_span("inner"):
        log.info("within")
    log.info("outside")

    within, outside = capsys.readouterr().err.splitlines()
    assert f"trace_id={outer.get_span_context().trace_id:032x}" in within
    assert "trace_id=- " in outside


def test_as_json_a_line_is_one_object_even_with_an_exception(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Newlines of a traceback do not break the lines."""
    logs.configure(LogSettings(level="INFO", is_json=True), service="orders")

    with telemetry.tracer.start_as_current_span("work") as span:
        try:
            raise ValueError("two\nlines")  # noqa: TRY301 - to have one with a traceback
        except ValueError:
            log.exception('it "failed"')
    log.info("outside")

    failed, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert failed["message"] == 'it "failed"'
    assert failed["level"] == "ERROR"
    assert failed["service"] == "orders"
    assert failed["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert "ValueError: two\nlines" in failed["exception"]
    assert "trace_id" not in outside
    assert failed["time"].endswith("Z")


def test_as_json_a_text_that_is_no_unicode_is_still_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of a stranger may end up in a message."""
    logs.configure(LogSettings(level="INFO", is_json=True), service="orders")

    log.warning("refused %s", b"\xff".decode("utf-8", "surrogateescape"))

    assert json.loads(capsys.readouterr().err)["message"] == "refused \\udcff"


async def test_a_service_logs_as_its_variables_say(tmp_path: Path) -> None:
    """From its first line to its last one; a value that makes no sense is one sentence and exit code 64."""
    port = free_port()
    environment = {
        "PROVIDER_LISTEN": f"127.0.0.1:{port}",
        "PROVIDER_LEDGER": str(tmp_path / "ledger.jsonl"),
        "OTEL_SERVICE_NAME": "bank",
    }
    process = Process("provider", {**environment, "LOG_FORMAT": "json"}, log=tmp_path / "json.log")
    try:
        await wait_until(lambda: accepts(port), within_s=20.0, what="the provider listening")
        process.signal(signal.SIGTERM)
        assert await process.exited() == 0
    finally:
        process.kill()
    confused = Process("provider", {**environment, "LOG_FORMAT": "xml"}, log=tmp_path / "xml.log")
    assert await confused.exited() == 64

    lines = [json.loads(line) for line in (tmp_path / "json.log").read_text().splitlines()]
    assert [line["message"] for line in lines][-2:] == ["SIGTERM: stopping", "stopped"]
    assert {line["service"] for line in lines} == {"bank"}
    assert (tmp_path / "xml.log").read_text() == "LOG_FORMAT='xml' is not one of text, json\n"


def test_what_is_below_the_level_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    """`LOG_LEVEL` decides."""
    logs.configure(LogSettings(level="WARNING", is_json=False), service="test")

    log.info("quiet")
    log.warning("loud")

    assert "loud" in capsys.readouterr().err
