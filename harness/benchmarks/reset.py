"""What a test pays for parts that are as new: `python -m harness.benchmarks.reset [--backend container] [--rounds N]`.

For each family the first start, what handing over to the next test takes, and the end; and for the broker the two other
ways of giving a test an empty one: removing all streams over the test's own account, and a fresh server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from harness.environment.choice import BACKENDS, EMBEDDED, BackendChoice
from harness.fixtures.family import Order, Renewable
from harness.fixtures.jetstream import connected
from harness.fixtures.nats_cluster import RunningCluster, nats_cluster
from harness.fixtures.nats_server import RunningNats, nats_server
from harness.fixtures.otlp import otlp
from harness.fixtures.postgres import postgres
from harness.fixtures.proxies import proxies
from harness.fixtures.session import SessionParts

STREAMS = 3
BUDGET_MS = 100.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default=EMBEDDED)
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    options = parser.parse_args(arguments)
    with SessionParts(BackendChoice(name=options.backend), runs_directory=None, progress=print) as parts:
        database = replace(parts.single, postgres=True)
        print(f"{'ms':<44} {'start':>8} {'median':>8} {'worst':>8}   budget {BUDGET_MS:g}")
        _measure(parts, "nats_server", parts.single, nats_server, options.rounds, use=_use_streams)
        _measure(parts, "nats_cluster", parts.cluster, nats_cluster, options.rounds, use=_use_streams)
        _measure(parts, "toxiproxy", parts.single, proxies, options.rounds)
        _measure(parts, "postgres", database, postgres, options.rounds)
        _measure(parts, "otlp", BackendChoice(), otlp, options.rounds)
        _measure_removal(parts, options.rounds)
        _measure_fresh(parts, options.rounds)
    return 0


def _measure(
    parts: SessionParts,
    name: str,
    choice: BackendChoice,
    family: Callable[[Order], AbstractAsyncContextManager[Renewable]],
    rounds: int,
    *,
    use: Callable[[RunningNats | RunningCluster], object] | None = None,
) -> None:
    took = []
    for _ in range(rounds + 1):
        began_s = time.perf_counter()
        with parts.lend(name, choice, family) as part:
            took.append(time.perf_counter() - began_s)
            if use is not None and isinstance(part, RunningNats | RunningCluster):
                use(part)
    _print(f"{name}, handed over", took[1:], start_s=took[0])


def _use_streams(broker: RunningNats | RunningCluster) -> None:
    async def use() -> None:
        async with connected(broker.access, name="benchmark") as client:
            jetstream = client.jetstream()
            for number in range(STREAMS):
                await jetstream.add_stream(
                    name=f"S{number}", subjects=[f"s{number}.>"], num_replicas=len(broker.access.urls)
                )
                await jetstream.publish(f"s{number}.x", b"x")

    asyncio.run(use())


def _measure_removal(parts: SessionParts, rounds: int) -> None:
    async def remove(server: RunningNats) -> None:
        async with connected(server.access, name="benchmark") as client:
            jetstream = client.jetstream()
            for stream in await jetstream.streams_info():
                await jetstream.delete_stream(str(stream.config.name))

    took = []
    with parts.lend("nats_server", parts.single, nats_server) as server:
        for _ in range(rounds):
            _use_streams(server)
            began_s = time.perf_counter()
            asyncio.run(remove(server))
            took.append(time.perf_counter() - began_s)
    _print(f"nats_server, {STREAMS} streams removed instead", took)


def _measure_fresh(parts: SessionParts, rounds: int) -> None:
    took = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        with parts.lend("nats_server", parts.single, nats_server, is_fresh=True):
            pass
        took.append(time.perf_counter() - began_s)
    _print("nats_server, a fresh one started and ended", took)


def _print(what: str, took_s: Sequence[float], *, start_s: float | None = None) -> None:
    start = "" if start_s is None else f"{1000 * start_s:.1f}"
    print(f"{what:<44} {start:>8} {1000 * statistics.median(took_s):>8.1f} {1000 * max(took_s):>8.1f}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
