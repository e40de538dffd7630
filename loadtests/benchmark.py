"""What the load generator itself costs: Locust against a server that answers at once. `python -m loadtests.benchmark`.

Promises: figures of one machine in one go, to be compared with each other: our users at steady rates, our users
saturated, and Locust's own FastHttpUser saturated, which keeps no history and no schedule.

Does not: measure the system; nothing of it is started.

Two shared cores, CPython 3.11, Locust 2.47, gevent 26.9, November 2026, at a time when FastHttpUser cost 246-273 µs
(88-100 when such a machine is quiet, so read the ratio): ours 133 µs saturated at 6,300-7,600 orders/s, half of
FastHttpUser with schedule, history and exact figures included; 134-164 at 5,000/s and 167-182 at 2,000/s
(more wake-ups).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httptools
import uvloop

RATES_PER_S = (2_000, 5_000, 100_000)
USERS = 256
DURATION_S = 6
RUN_WITHIN_S = 60.0
LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"

_ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
_FAST_HTTP_USER = """
import time
from locust import FastHttpUser, events, task
BODY = '{"customer_id": "c001", "total_amount": 12.5, "currency": "EUR"}'
TRACE = "00-%032x-%016x-01" % (1, 1)
HEADERS = {"Content-Type": "application/json", "Idempotency-Key": "s1-000001", "traceparent": TRACE}
class Customer(FastHttpUser):
    @task
    def place(self):
        self.client.post("/orders", data=BODY, headers=HEADERS)
@events.test_start.add_listener
def begin(environment, **_):
    environment.cpu_s = time.process_time()
@events.test_stop.add_listener
def end(environment, **_):
    count = environment.stats.total.num_requests
    print("COST", count, (time.process_time() - environment.cpu_s) / count * 1e6)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--duration", type=int, default=DURATION_S, help="seconds of each measurement")
    options = parser.parse_args()
    if options.serve:
        uvloop.run(_serve())
        return
    with _server() as url:
        for rate_per_s in RATES_PER_S:
            load = measured(url, rate_per_s=rate_per_s, duration_s=options.duration)
            _say(
                f"ours, {rate_per_s:>6}/s asked: {load['rate_reached_per_s']:>8}/s, "
                f"{load['cpu_us']:>6} CPU µs per order, {load['cpu_share']:.0%} of a core, "
                f"free users late by {load['lag_max_ms']} ms at most"
            )
        count, cpu_us = fast_http_user(url, duration_s=options.duration)
        _say(f"FastHttpUser, closed loop: {count / options.duration:>8.1f}/s, {cpu_us:>6.1f} CPU µs per request")


def measured(url: str, *, rate_per_s: float, duration_s: int) -> dict[str, float]:
    """Run our locustfile once and return its `load.json`."""
    with tempfile.TemporaryDirectory() as directory:
        variables = {**os.environ, "STORMPROOF_OPERATIONS": str(Path(directory) / "operations.jsonl")}
        _locust(LOCUSTFILE, url, duration_s, "--rate", str(rate_per_s), variables=variables)
        found: dict[str, float] = json.loads((Path(directory) / "load.json").read_text())
        return found


def fast_http_user(url: str, *, duration_s: int) -> tuple[int, float]:
    """Run Locust's own lean user once; returns its requests and CPU µs per request."""
    with tempfile.TemporaryDirectory() as directory:
        locustfile = Path(directory) / "fast_http_user.py"
        locustfile.write_text(_FAST_HTTP_USER)
        said = _locust(locustfile, url, duration_s, variables=dict(os.environ))
    _, count, cpu_us = next(line for line in said.splitlines() if line.startswith("COST")).split()
    return int(count), float(cpu_us)


def _locust(locustfile: Path, url: str, duration_s: int, *more: str, variables: dict[str, str]) -> str:
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        (
            *(sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "--only-summary", "--host", url),
            *("-u", str(USERS), "-r", str(USERS), "-t", str(duration_s), *more),
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=variables,
        timeout=RUN_WITHIN_S + duration_s,
        check=True,
    )
    return done.stdout


@contextmanager
def _server() -> Iterator[str]:
    with subprocess.Popen(
        (sys.executable, "-m", "loadtests.benchmark", "--serve"), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None  # noqa: S101 - it is a pipe, as asked
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGTERM)


async def _serve() -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(_AnswersAtOnce, "127.0.0.1", 0)
    _say(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await stop.wait()


class _AnswersAtOnce(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is none of asyncio's classes, so a check would be wrong.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(_ANSWER)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
