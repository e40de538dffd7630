"""What a row costs: written in batches or one by one at a steady rate, and read, on SQLite and on PostgreSQL.

    python -m system.benchmarks.database [--rate 10000] [--seconds 5] [--rows-before 100000] [--postgres URL]

Rows come every two milliseconds, as deliveries do, to a table that holds some already. Their keys grow with time, or
are drawn at random: then nearly every row dirties a page of its own. CPU time is this process's, the system's share
included, without what the same loop costs when it writes nowhere; with PostgreSQL the server's comes on top (it is
another process, perhaps on another machine). Without `--postgres` only SQLite is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from system.database import Database, Migration, Row, Statement, open_database
from system.metrics import Metrics
from system.settings import DatabaseLocation, PostgresLocation, SqliteLocation, TelemetrySettings
from system.telemetry import Telemetry

TICK_S = 0.002
BATCH_ROWS = 50

_TABLE = """
DROP TABLE IF EXISTS benchmark;
CREATE TABLE benchmark (
    id TEXT {collation} PRIMARY KEY, customer TEXT, amount BIGINT, currency TEXT, status TEXT, at_ns BIGINT
)
"""
_MIGRATION = Migration(
    sqlite=_TABLE.format(collation="") + "WITHOUT ROWID;", postgres=_TABLE.format(collation='COLLATE "C"') + ";"
)
_WRITE = Statement(
    "INSERT INTO benchmark VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET status = excluded.status",
    key=1,
)
_READ = Statement("SELECT * FROM benchmark WHERE id = $1", key=1)

Step = Callable[[Database, Sequence[str]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of a database. rate_per_s: rows. rows_before: how many the table holds already."""

    rate_per_s: int
    seconds: float
    rows_before: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows-before", type=int, default=100_000)
    parser.add_argument("--postgres", default="", metavar="URL", help="a database to make the table `benchmark` in")
    arguments = parser.parse_args()
    load = Load(rate_per_s=arguments.rate, seconds=arguments.seconds, rows_before=arguments.rows_before)
    uvloop.run(_measure(load, arguments.postgres))


async def _measure(load: Load, postgres: str) -> None:
    print(f"CPU us per row at {load.rate_per_s} rows/s, {load.rows_before} rows before")
    print("database    keys      what                 us/row  rows/s  wait ms  commit ms  rows each")
    idle_us = await _loop_us(load)
    for database in ("sqlite", "postgresql") if postgres else ("sqlite",):
        for keys in ("in order", "random"):
            with tempfile.TemporaryDirectory() as directory:
                location: DatabaseLocation = (
                    PostgresLocation(url=postgres)
                    if database == "postgresql"
                    else SqliteLocation(path=Path(directory) / "benchmark.db")
                )
                for what, step in (
                    ("batches written", _write_batches),
                    ("written one by one", _write_each),
                    ("read", _read_each),
                ):
                    await _measure_one(load, location, (database, keys, what), step, idle_us)


async def _measure_one(
    load: Load, location: DatabaseLocation, names: tuple[str, str, str], step: Step, idle_us: float
) -> None:
    metrics = Metrics()
    is_random = names[1] == "random"
    async with _opened(location, metrics) as database:
        written = _keys(load.rows_before, is_random=is_random)
        for start in range(0, len(written), 500):
            await database.write(_WRITE, _rows(written[start : start + 500]))
        waits, commits = metrics.histogram("db_wait_seconds", ""), metrics.histogram("db_commit_seconds", "")
        before = (waits.sum, sum(waits.counts), commits.sum, sum(commits.counts))
        keys = _keys(int(load.rate_per_s * load.seconds), is_random=is_random)
        if step is _read_each:
            keys = random.choices(written, k=len(keys))
        cpu_us, rate = await _paced(load, keys, lambda some: step(database, some))
        wait_s, writes, commit_s, groups = (
            now - then
            for now, then in zip((waits.sum, sum(waits.counts), commits.sum, sum(commits.counts)), before, strict=True)
        )
    times = f"{wait_s / writes * 1e3:9.1f}{commit_s / groups * 1e3:11.1f}{len(keys) / groups:11.0f}" if groups else ""
    print(f"{names[0]:12}{names[1]:10}{names[2]:20}{cpu_us - idle_us:7.1f}{rate:8.0f}{times}")


async def _loop_us(load: Load) -> float:
    async def nothing(keys: Sequence[str]) -> None:
        _rows(keys)

    cpu_us, _ = await _paced(load, _keys(int(load.rate_per_s * load.seconds), is_random=True), nothing)
    return cpu_us


async def _paced(
    load: Load, keys: Sequence[str], step: Callable[[Sequence[str]], Awaitable[None]]
) -> tuple[float, float]:
    """CPU us per row, and the rows per second that it came to."""
    per_tick = max(1, round(load.rate_per_s * TICK_S))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as steps:
        for number, start in enumerate(range(0, len(keys), per_tick)):
            if (early_s := began_s + number * TICK_S - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            steps.create_task(_awaited(step(keys[start : start + per_tick])))
    return (time.process_time() - began_cpu_s) / len(keys) * 1e6, len(keys) / (time.perf_counter() - began_s)


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _write_batches(database: Database, keys: Sequence[str]) -> None:
    rows = _rows(keys)
    for start in range(0, len(rows), BATCH_ROWS):
        await database.write(_WRITE, rows[start : start + BATCH_ROWS])


async def _write_each(database: Database, keys: Sequence[str]) -> None:
    await asyncio.gather(*[database.write_soon(_WRITE, (row,)) for row in _rows(keys)])


async def _read_each(database: Database, keys: Sequence[str]) -> None:
    await asyncio.gather(*[database.read(_READ, (key,)) for key in keys])


def _rows(keys: Sequence[str]) -> list[Row]:
    return [(key, "customer-1", 1250, "EUR", "PENDING", time.time_ns()) for key in keys]


def _keys(count: int, *, is_random: bool) -> list[str]:
    if is_random:
        return [random.randbytes(16).hex() for _ in range(count)]
    return [f"{time.time_ns() + number:016x}{random.randbytes(8).hex()}" for number in range(count)]


@asynccontextmanager
async def _opened(location: DatabaseLocation, metrics: Metrics) -> AsyncIterator[Database]:
    telemetry = Telemetry(TelemetrySettings(service_name="benchmark", endpoint=None, spool_directory=None), metrics)
    name = f"benchmark_{random.randbytes(4).hex()}"  # a schema of its own: the table is made anew
    if isinstance(location, SqliteLocation):
        location.path.unlink(missing_ok=True)
    async with open_database(
        location, migrations=(_MIGRATION,), name=name, tracer=telemetry.tracer, metrics=metrics
    ) as database:
        yield database


if __name__ == "__main__":
    main()
