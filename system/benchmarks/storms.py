"""What becomes of orders when a part of the shop fails under load: real processes, real harm, and a verdict.

    python -m system.benchmarks.storms NAME... [--rate N] [--for S] [--database sqlite|postgresql|URL] [--json]
        [--set NAME=VALUE ...]

NAME is one of `silent-provider`, `broker-restarts`, `kill-orders`, `kill-payments`, `kill-provider` (what each of them
does is told in `nemesis`), or `all`. Each storm gets a fresh shop (`shop`) under orders at a steady rate in an open
loop, which come before, during and after it. Then everything is left alone until the shop is at rest (`aftermath`), and
every order that was asked for is asked about. `verdicts` judges.

`--database postgresql` starts a PostgreSQL of its own; a URL (postgresql://user@host/name) names one that is there,
where each storm makes a database of its own and removes it afterwards. `--set` changes a variable of the services.

Exit codes: 0 every must holds, 1 one is violated or a part broke, 64 wrong use. It leaves nothing behind; but when
killed itself, a database `storm_...` on a server that was there before, or 56 bytes of shared memory of its own one.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from system.benchmarks import storm_table
from system.benchmarks.aftermath import look, read_answers, read_charges
from system.benchmarks.generator import AMOUNT_MINOR, ANSWERS_WITHIN_S, read_record
from system.benchmarks.journeys import read_journeys
from system.benchmarks.measuring import start_generator
from system.benchmarks.nemesis import STORMS, Nemesis
from system.benchmarks.parts import BenchmarkError, Part, Parts
from system.benchmarks.postgres import POSTGRESQL, SQLITE, databases
from system.benchmarks.shop import SERVICES, start_shop
from system.benchmarks.verdicts import Evidence, Life, Verdict, judged
from system.settings import PostgresLocation, database_location

ALL = "all"

RATE_PER_S = 300
RATE_MAX_PER_S = 20_000
SILENT_S = 60.0
SILENT_MAX_S = 3600.0
BEFORE_S = 3.0
AFTER_S = 5.0
LOAD_MAX_S = 600.0
"""Longer than any storm that is not silence takes; the load ends when the storm is over."""
CONNECTIONS = 512

EXIT_BROKEN = 1
EXIT_USAGE = 64

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for. database: `sqlite`, `postgresql` or a URL. before_s, after_s: load around the storm."""

    storm: str
    rate_per_s: int = RATE_PER_S
    silent_s: float = SILENT_S
    before_s: float = BEFORE_S
    after_s: float = AFTER_S
    database: str = SQLITE
    more: Mapping[str, str] = field(default_factory=dict)


def weathered(plan: Plan, *, tell: Tell) -> Verdict:
    """Play one storm and judge it. tell: called with what goes on. BenchmarkError: a part broke."""
    with Parts() as parts, databases(plan.database, parts) as tables:
        shop = start_shop(parts, {**tables, **plan.more})
        nemesis = Nemesis(parts, shop, silent_s=plan.silent_s, tell=tell)
        file = parts.directory / "record"
        seconds = plan.before_s + plan.silent_s + plan.after_s + LOAD_MAX_S
        generator, began_ns = start_generator(
            parts, shop, file, rate_per_s=plan.rate_per_s, seconds=seconds, connections=CONNECTIONS
        )
        time.sleep(max(0.0, began_ns / 1e9 + plan.before_s - time.time()))
        storm_began_ns = time.time_ns()
        STORMS[plan.storm](nemesis)
        storm_ended_ns = time.time_ns()
        time.sleep(plan.after_s)
        _end_load(parts, generator)
        record = read_record(file)
        answers, refusals = read_answers(record)
        tell(f"{len(answers)} orders were asked for; waiting until the shop is at rest")
        aftermath = asyncio.run(look(shop, answers, tell=tell))
        openings = nemesis.breaker_openings()
        parts.check()
        shop.stop(parts)
        parts.stop(shop.parts["nats-server"], signal.SIGINT)  # after SIGTERM it would end with 1
        journeys = read_journeys(shop.spool)
        return judged(
            Evidence(
                answers=answers,
                refusals=refusals,
                missed=len(record.sent_ns) - len(answers),
                orders=aftermath.orders,
                charges=read_charges(shop.ledger),
                amount_minor=AMOUNT_MINOR,
                dead_letters=aftermath.dead_letters,
                rested=aftermath.rested,
                calls=journeys.calls.values(),
                deliveries=journeys.deliveries.values(),
                breaker_openings=openings,
                storm_began_ns=storm_began_ns,
                storm_ended_ns=storm_ended_ns,
                lives={
                    name: Life(killed=tuple(nemesis.exit_codes[name]), last=shop.parts[name].process.wait())
                    for name in ("nats-server", *SERVICES)
                },
            )
        )


def _end_load(parts: Parts, generator: Part) -> None:
    """Ask for no more orders, and wait for the last answers."""
    generator.process.send_signal(signal.SIGTERM)
    parts.wait(generator, lambda: not generator.is_running, what="done", within_s=2 * ANSWERS_WITHIN_S)
    parts.check()


def main(arguments: Sequence[str] | None = None) -> int:
    """Play storms and print their verdicts; returns the exit code."""
    options = _parser().parse_args(arguments)
    names = list(STORMS) if ALL in options.storms else list(dict.fromkeys(options.storms))
    # With --json standard output is one document and nothing else.
    show = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    kind = SQLITE if options.database == SQLITE else POSTGRESQL
    found: list[tuple[str, Verdict]] = []
    broke: dict[str, str] = {}
    for name in names:
        plan = Plan(
            storm=name,
            rate_per_s=options.rate,
            silent_s=options.silent_s,
            database=options.database,
            more=dict(pair.split("=", 1) for pair in options.set),
        )
        try:
            verdict = weathered(plan, tell=functools.partial(_tell, name))
        except BenchmarkError as error:
            broke[name] = str(error)
            _tell(name, f"a part broke: {error}")
            continue
        except KeyboardInterrupt:
            return 130
        found.append((name, verdict))
        # Others on the machine spoil the times, though no must.
        conditions = f"{options.rate} orders/s, {kind}, load average {os.getloadavg()[0]:.1f}"
        show(storm_table.table(name, conditions, verdict), end="\n\n")
    if options.json:
        print(storm_table.document({"rate_per_s": options.rate, "database": kind}, found, broke))
    return 0 if not broke and all(verdict.holds for _, verdict in found) else EXIT_BROKEN


class _Parser(argparse.ArgumentParser):
    """Wrong use is 64, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m system.benchmarks.storms", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("storms", nargs="+", choices=(*STORMS, ALL), metavar="NAME", help=", ".join((*STORMS, ALL)))
    parser.add_argument("--rate", type=_rate, default=RATE_PER_S, metavar="N", help="orders a second (%(default)d)")
    parser.add_argument(
        "--for",
        type=_seconds,
        default=SILENT_S,
        dest="silent_s",
        metavar="S",
        help="how long the silent provider is silent (%(default)g)",
    )
    parser.add_argument(
        "--database",
        type=_database,
        default=SQLITE,
        metavar="WHERE",
        help="sqlite (default), postgresql for a server of its own, or the URL of one",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument(
        "--set", type=_variable, action="append", default=[], metavar="NAME=VALUE", help="a variable for the services"
    )
    return parser


def _rate(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= RATE_MAX_PER_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {RATE_MAX_PER_S}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= SILENT_MAX_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to {SILENT_MAX_S:g}")
    return seconds


def _database(text: str) -> str:
    if text in (SQLITE, POSTGRESQL):
        return text
    try:
        is_server = isinstance(database_location(text), PostgresLocation)
    except ValueError:
        is_server = False
    if not is_server:
        # The text itself stays out of it: it may hold a password.
        raise argparse.ArgumentTypeError(f"is neither {SQLITE}, nor {POSTGRESQL}, nor a postgresql://host/database URL")
    return text


def _variable(text: str) -> str:
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text


def _tell(storm: str, what: str) -> None:
    sys.stderr.write(f"[{storm}] {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
