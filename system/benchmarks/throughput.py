"""How many orders a second the shop takes, how fast, and what an order costs: the whole of it on this machine.

    python -m system.benchmarks.throughput [--rate N ...] [--seconds S] [--connections N] [--together] [--json]
        [--keep-going]

Each rate gets a fresh shop: nats-server (with GOMAXPROCS=1 on no more than two cores), provider, payments and orders,
each its own process, every span spooled and shipped to a collector that only counts them. Of two cores orders has the
first to itself, as an operator would give it with `taskset`, unless all are to run `--together`. Orders come in an
open loop (`generator`): they are due at fixed times, and latencies count from then. After a warm-up at the same rate
the steady window begins; CPU times are those of the window only.

Without --rate it looks for the highest rate that is held: 99 % accepted below 20 ms, nothing refused, missed or left
unsettled, and no growing backlog. It doubles from 1,000/s until a rate fails, then halves the gap down to 500/s. What
fails is tried once more, because neighbours on a shared machine spoil single runs; "other cores" shows how much of the
machine they had.

`--set` changes a variable of the services (not ORDERS_DB: the table is read as SQLite). Figures for people: it ends
with 0 whether or not a rate was held, 1 when a part broke, 64 for wrong use. It leaves nothing behind, not even after
SIGKILL.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from system.benchmarks.measuring import measure
from system.benchmarks.parts import BenchmarkError
from system.benchmarks.results import Measurement, Plan
from system.benchmarks.table import details, document, heading, row

SECONDS = 10.0
SECONDS_MIN, SECONDS_MAX = 1.0, 3600.0
WARM_UP_S = 2.0
CONNECTIONS = 256
CONNECTIONS_MAX = 4096
RATE_MAX_PER_S = 100_000

SEARCH_FROM_PER_S = 1_000
SEARCH_TO_PER_S = 64_000
SEARCH_DOWN_TO_PER_S = 125
SEARCH_STEP_PER_S = 500
ATTEMPTS = 2

EXIT_BROKEN = 1
EXIT_USAGE = 64


def highest_held(
    measured: Callable[[int], Measurement], *, keep_going: bool = False
) -> tuple[Measurement, list[Measurement]]:
    """The measurement of the highest rate that was held (else of the lowest that was not), and all there were.

    keep_going: afterwards measure once and twice again as much, to show what overload does.
    """
    steps: list[Measurement] = []

    def is_held(rate_per_s: int) -> bool:
        for _ in range(ATTEMPTS):
            steps.append(measured(rate_per_s))
            if steps[-1].is_held:
                return True
        return False

    low, high = 0, SEARCH_FROM_PER_S
    while high <= SEARCH_TO_PER_S and is_held(high):
        low, high = high, high * 2
    while not low and high > SEARCH_DOWN_TO_PER_S:
        if is_held(high // 2):
            low = high // 2
            break
        high //= 2
    while high - low > SEARCH_STEP_PER_S and high <= SEARCH_TO_PER_S:
        middle = low + (high - low) // 2 // SEARCH_STEP_PER_S * SEARCH_STEP_PER_S
        if is_held(middle):
            low = middle
        else:
            high = middle
    if keep_going:
        steps.extend(measured((low or high) * times) for times in (2, 3))
    held = [step for step in steps if step.is_held]
    return (max(held, key=_rate) if held else min(steps, key=_rate)), steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _parser().parse_args(arguments)
    more = dict(pair.split("=", 1) for pair in options.set)
    has_heading = False

    def measured(rate_per_s: int) -> Measurement:
        nonlocal has_heading
        found = measure(
            Plan(
                rate_per_s=rate_per_s,
                seconds=options.seconds,
                warm_up_s=options.warm_up,
                connections=options.connections,
                is_apart=not options.together,
            ),
            more,
        )
        if not has_heading:
            tell(heading(tuple(found.cpu_us_per_order)))
            has_heading = True
        tell(row(found))
        return found

    # With --json standard output is one document and nothing else.
    tell = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    try:
        if options.rate:
            steps = [measured(rate_per_s) for rate_per_s in options.rate]
            chosen = max([step for step in steps if step.is_held] or steps[:1], key=_rate)
        else:
            chosen, steps = highest_held(measured, keep_going=options.keep_going)
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BROKEN
    except KeyboardInterrupt:
        return 130
    tell("", details(chosen), f"  load average {os.getloadavg()[0]:.1f} over 1 minute", sep="\n")
    if options.json:
        print(document(chosen, steps))
    return 0


class _Parser(argparse.ArgumentParser):
    """Wrong use is 64, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m system.benchmarks.throughput", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rate",
        type=functools.partial(_whole, high=RATE_MAX_PER_S),
        nargs="+",
        metavar="N",
        help="orders a second; several are measured one by one (default: look for the highest that is held)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=SECONDS, metavar="S", help="length of the steady window (%(default)g)"
    )
    parser.add_argument(
        "--warm-up", type=_warm_up, default=WARM_UP_S, metavar="S", help="orders that come before it (%(default)g)"
    )
    parser.add_argument(
        "--connections",
        type=functools.partial(_whole, high=CONNECTIONS_MAX),
        default=CONNECTIONS,
        metavar="N",
        help="one request in flight on each (%(default)d)",
    )
    parser.add_argument(
        "--together", action="store_true", help="give orders no core to itself where there are two, but let all share"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument(
        "--keep-going", action="store_true", help="after the search, measure twice and three times the rate found"
    )
    parser.add_argument(
        "--set", type=_variable, action="append", default=[], metavar="NAME=VALUE", help="a variable for the services"
    )
    return parser


def _whole(text: str, *, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {high}")
    return int(text)


def _seconds(text: str, low: float = SECONDS_MIN) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not low <= seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {low:g} to {SECONDS_MAX:g}")
    return seconds


def _warm_up(text: str) -> float:
    return _seconds(text, 0.0)


def _variable(text: str) -> str:
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text


def _rate(found: Measurement) -> int:
    return found.rate_asked_per_s


if __name__ == "__main__":
    sys.exit(main())
