"""Kills the harness at random moments and counts what is left of it: it must be nothing.

    python -m harness.benchmarks.leaks [--kills 50] [--what run|up|doctor|pytest] [--signal KILL|TERM|INT] [--seed 1]
                                       [--at MOMENT]... [--within 10] [--unguarded] [--json] [-- --backend cluster ...]

Moments are spread at random, from the seed, over the life of the command, which is measured first; `--at` names them
instead: `1.5s`, `line:3` (the third line of its progress), `processes:4` (as soon as it owns four). What stands behind
`--` goes to the command. Ends with 1 when anything is left of any of them after `--within` seconds, with 3 when nothing
was ever there to be left.

`--unguarded` kills the guardians first: then the next start must remove what is left, and it is that which counts.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict

from harness.benchmarks.killing import Kill, adopt_orphans, kill, life_of
from harness.benchmarks.leftovers import KINDS
from harness.benchmarks.victims import Moment, Victim, victim_of
from harness.errors import StormproofError

WITHIN_S = 10.0
ATTEMPTS_PER_KILL = 3
EXIT_LEFT = 1
EXIT_NOTHING_KILLED = 3


def main() -> int:
    """Kill, count, print."""
    try:
        return _kill_and_count(_options())
    except StormproofError as error:
        print(f"leaks: {error}", file=sys.stderr)
        return error.exit_code


def _kill_and_count(options: argparse.Namespace) -> int:
    adopt_orphans()
    victim = victim_of(options.what, *options.options)
    number = signal.Signals[f"SIG{options.signal}"]
    kills: list[Kill] = []
    for moment in options.at or _spread(victim, options):
        done = kill(victim, moment, number, within_s=options.within, unguarded=options.unguarded)
        if done.came_too_late and not options.at and not done.left.total:
            continue  # this time it was faster than when its life was measured: no kill
        kills.append(done)
        if not options.json:
            _print(done, is_first=len(kills) == 1)
        if not options.at and len(kills) == options.kills:
            break
    if options.json:
        print(json.dumps([_document(each) for each in kills]))
    else:
        _print_sum(kills)
    if any(_what_counts(each) for each in kills):
        return EXIT_LEFT
    return 0 if any(each.had.processes for each in kills) else EXIT_NOTHING_KILLED


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--what", choices=("run", "up", "doctor", "pytest"), default="run")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at", type=Moment.parse, action="append", default=[], metavar="MOMENT")
    parser.add_argument("--within", type=float, default=WITHIN_S, metavar="S")
    parser.add_argument("--unguarded", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("options", nargs="*", metavar="-- OPTION")
    return parser.parse_args()


def _spread(victim: Victim, options: argparse.Namespace) -> Iterator[Moment]:
    """Moments over its life, some more than are asked for: a few may come too late."""
    life_s = life_of(victim)
    print(f"lives {life_s:.2f} s; {options.kills} kills, seed {options.seed}", file=sys.stderr)
    chance = random.Random(options.seed)
    for _ in range(options.kills * ATTEMPTS_PER_KILL):
        yield Moment(kind="seconds", value=chance.uniform(0, life_s))


def _what_counts(each: Kill) -> int:
    return each.left.total if each.after_next_start is None else each.after_next_start.total


def _document(each: Kill) -> dict[str, object]:
    return {**asdict(each), "had": each.had.counts()}


def _print(each: Kill, *, is_first: bool) -> None:
    if is_first:
        print(
            f"{'killed at':<14}{'processes':>11}{'containers':>12}{'ports':>7}{'locks':>7}{'all gone after':>16}   left"
        )
    had = each.had
    gone = "never" if each.gone_s is None else f"{each.gone_s:.2f} s"
    left = "; ".join(each.left.words()) or "nothing"
    print(
        f"{each.moment:<14}{len(had.processes):>11}{len(had.containers):>12}{len(had.ports):>7}{len(had.locks):>7}"
        f"{gone:>16}   {left}",
        flush=True,
    )
    if each.after_next_start is not None:
        print(f"    after the next start: {'; '.join(each.after_next_start.words()) or 'nothing'}", flush=True)


def _print_sum(kills: list[Kill]) -> None:
    print()
    print(f"{'':<16}{'were there':>12}{'left':>8}")
    for kind in KINDS:
        there = sum(each.had.counts()[kind] for each in kills)
        left = sum((each.after_next_start or each.left).counts()[kind] for each in kills)
        print(f"{kind.replace('_', ' '):<16}{there:>12}{left:>8}")
    gone = [each.gone_s for each in kills if each.gone_s is not None]
    if gone:
        print(f"{len(kills)} kills; all gone after {statistics.median(gone):.2f} s (median), {max(gone):.2f} s at most")


if __name__ == "__main__":
    sys.exit(main())
