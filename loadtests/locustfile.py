"""Locust for the shop: `locust -f loadtests/locustfile.py --headless -u 50 -t 10s --rate 200`.

Places orders in an open loop at `--rate` a second; `-u` users are the room for orders in flight, and all start at once
unless `-r` says otherwise. Three ways to run it:

- without `--host`: starts the whole system itself (`python -m harness up`), places orders, then lets it settle and
  judges every single one of them; Locust's exit code is the verdict's: 0 holds, 1 violated, 2 unknown, 3 broken;
- with `--host`: only drives that address; nothing is judged, and that is said;
- with `--host` and STORMPROOF_OPERATIONS=FILE: as above, and the history goes to FILE, the figures to `load.json`
  beside it. `stormproof load` does this, and judges.

Does not: run distributed (`--master`, `--processes`), which ends with exit code 64: one schedule needs one process.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from locust import events
from locust.runners import LocalRunner

# Found by path, not by name: whoever runs Locust from elsewhere, or without having installed us, means this copy.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from harness.collection.history import FILE_NAME
from loadtests.connection import resolved
from loadtests.open_loop import RATE_MAX_PER_S
from loadtests.own_system import BROKEN, UNKNOWN, OwnSystem, OwnSystemError
from loadtests.placing import ANSWER_WITHIN_S, DRAIN_MARGIN_S, Customer, LoadTest, Wishes
from loadtests.recording import Recording

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

__all__ = ["Customer"]

OPERATIONS_VARIABLE = "STORMPROOF_OPERATIONS"
USERS = 50
RATE_PER_S = 100.0
SEED_BITS = 31
WRONG_USE = 64

logger = logging.getLogger("stormproof")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # Locust's events have no types
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options; each may also come from the environment."""
    parser.add_argument(
        "--rate", type=_positive, default=RATE_PER_S, env_var="STORMPROOF_RATE", help="Orders a second, open loop."
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=secrets.randbits(SEED_BITS),
        env_var="STORMPROOF_SEED",
        help="The same seed asks for the same orders. Default: a fresh one, for a running system answers repeated "
        "orders from memory.",
    )
    parser.add_argument(
        "--duration",
        type=_positive,
        default=None,
        env_var="STORMPROOF_DURATION",
        include_in_web_ui=False,
        help="Like --run-time, in seconds, with fractions.",
    )
    parser.add_argument(
        "--answer-within",
        type=_positive,
        default=ANSWER_WITHIN_S,
        env_var="STORMPROOF_ANSWER_WITHIN",
        help="Seconds a customer waits for an answer.",
    )


@events.init.add_listener  # type: ignore[untyped-decorator]  # as above
def prepare(environment: Environment, **_: object) -> None:
    """Find or start the system and open the history; the users come later."""
    options = _options(environment)
    if not isinstance(environment.runner, LocalRunner):
        _end(
            WRONG_USE,
            "distributed Locust (--master, --worker, --processes) is not supported: one schedule needs one process",
        )
    if options.duration is not None:
        options.run_time = options.duration
    options.num_users = options.num_users or USERS
    options.spawn_rate = options.spawn_rate or options.num_users
    # We drain ourselves. Locust's way waits for the task to end, and ours never does.
    drain_within_s = float(options.stop_timeout) or options.answer_within + DRAIN_MARGIN_S
    environment.stop_timeout = 0.0

    asked_for = os.environ.get(OPERATIONS_VARIABLE)
    if asked_for and not environment.host:
        _end(WRONG_USE, f"{OPERATIONS_VARIABLE} is set without --host: say which address to load")
    if environment.host:
        _check(environment.host)
    own = _own_system() if not environment.host else None
    if own is not None:
        environment.host = options.host = own.url
    history = own.run / FILE_NAME if own is not None else Path(asked_for) if asked_for else None
    try:
        recording = Recording(history)
    except OSError as error:
        if own is not None:
            own.give_up()
        _end(WRONG_USE, f"no history can be written: {error}")
    Session(environment, recording, history, own, drain_within_s).listen()
    _settle_down()


class Session:
    """What goes on between Locust's start and its end; its methods are Locust's listeners."""

    def __init__(
        self,
        environment: Environment,
        recording: Recording,
        history: Path | None,
        own: OwnSystem | None,
        drain_within_s: float,
    ) -> None:
        """own: the system we started and have to judge, None when somebody else does."""
        self._environment = environment
        self._own = own
        self._is_judged_elsewhere = history is not None and own is None
        self._drain_within_s = drain_within_s
        self._report = ""
        self._test = LoadTest(
            environment=environment, recording=recording, directory=None if history is None else history.parent
        )
        Customer.test = self._test

    def listen(self) -> None:
        """Let Locust call us."""
        hooks = self._environment.events
        for hook, listener in (
            (hooks.test_start, self.begin),
            (hooks.test_stopping, self.drain),
            (hooks.test_stop, self.finish),
            (hooks.quitting, self.judge),
            (hooks.quit, self.say),
        ):
            hook.add_listener(listener)  # type: ignore[no-untyped-call]  # as above

    def begin(self, **_: object) -> None:
        """A test starts; users will follow. Options are read now, because the web page may have changed them."""
        options = _options(self._environment)
        is_timed = options.headless or options.autostart
        self._test.begin(
            Wishes(
                seed=options.seed,
                rate_per_s=options.rate,
                duration_s=options.run_time if is_timed else None,
                answer_within_s=options.answer_within,
                drain_within_s=self._drain_within_s,
            )
        )
        logger.info("asking for %g orders/s from %s, seed %d", options.rate, self._environment.host, options.seed)
        if self._own is None and not self._is_judged_elsewhere:
            logger.info("driving a given --host: NOTHING IS JUDGED here, only counted and timed")

    def drain(self, **_: object) -> None:
        """Wait for the orders in flight before Locust ends the users; it would drop their answers."""
        self._test.drain()

    def finish(self, **_: object) -> None:
        """The users are gone."""
        runner = self._environment.runner
        summary = self._test.finish(0 if runner is None else runner.target_user_count)
        if summary is not None:
            logger.info("%s", summary.sentence())
            if summary.note:
                logger.warning("%s", summary.note)

    def judge(self, **_: object) -> None:
        """Locust ends: with a verdict, where we started the system."""
        runner = self._environment.runner
        if runner is not None and self._test.is_running:
            runner.stop()  # on SIGTERM and Ctrl-C Locust says so only after this
        is_broken = False
        try:
            self._test.close()
        except OSError as error:
            logger.error("the history is not whole: %s", error)  # noqa: TRY400 - a full disk needs no traceback
            is_broken = True
        if runner is not None and runner.exceptions:
            logger.error(
                "users failed with %d kinds of exceptions, see above: this load test is broken", len(runner.exceptions)
            )
            is_broken = True
        if self._own is not None:
            logger.info("letting the system settle, then judging %s (Ctrl-C ends it at once)", self._own.run)
            try:
                judged = self._own.judge()
            except KeyboardInterrupt:
                self._own.give_up()
                _end(UNKNOWN, f"interrupted; there is no verdict, what was collected so far is in {self._own.run}")
            except BaseException:
                self._own.give_up()
                raise
            self._report = f"{judged.report.rstrip()}\nverdict: {judged.verdict} ({self._own.run})\n"
            self._environment.process_exit_code = judged.exit_code
        if is_broken:
            self._environment.process_exit_code = BROKEN

    def say(self, **_: object) -> None:
        """Print the verdict last, below Locust's tables."""
        sys.stdout.write(self._report)
        sys.stdout.flush()


def _options(environment: Environment) -> Any:  # noqa: ANN401 - argparse's own type; _positive and type=int stand guard
    options = environment.parsed_options
    if options is None:
        raise RuntimeError("this locustfile needs Locust's command line; it does not work in Locust used as a library")
    return options


def _check(host: str) -> None:
    try:
        resolved(host)
    except (ValueError, OSError) as error:
        _end(WRONG_USE, f"--host {host}: {error}")


def _own_system() -> OwnSystem:
    logger.info("no --host given: starting the system (`python -m harness up`)")
    try:
        return OwnSystem.start()
    except OwnSystemError as error:
        _end(BROKEN, str(error))
    except KeyboardInterrupt:
        _end(UNKNOWN, "interrupted while the system started; nothing was asked of it")


def _settle_down() -> None:
    # Runner.stop() looks at its caller with inspect.stack(), which for the first time costs 0.3-0.6 s during which no
    # user runs, at the end of the load. Paid here instead.
    inspect.stack()
    gc.collect()
    gc.freeze()
    # Locust sets its run-time timer next, and gevent counts from a cached time: 0.7 s ago, as long as imports took.
    gevent.get_hub().loop.update_now()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= RATE_MAX_PER_S:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to {RATE_MAX_PER_S:g}")
    return value


def _end(exit_code: int, why: str) -> NoReturn:
    sys.stderr.write(f"stormproof: {why}\n")
    sys.exit(exit_code)
