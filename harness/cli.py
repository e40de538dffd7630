"""The command `stormproof`: words in, exit code out.

Exit codes everywhere: 0 holds, 1 violated, 2 unknown (also: interrupted), 3 the harness itself broke, 64 wrong use.
With `--json`, standard output carries one JSON document and nothing else; progress and reports go to standard error.

This module parses and reports; what a subcommand does lives in `harness.commands`, imported only when it is asked for,
because the time from the command to the first accepted order is part of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness import __version__
from harness.environment.choice import BACKENDS, EMBEDDED
from harness.errors import StormproofError, UsageError, leaf_of
from harness.runs import DEFAULT_DIRECTORY, LATEST

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

SEED_MAX = 2**63 - 1
RATE_MAX_PER_S = 1_000_000.0
DURATION_MAX_S = 86_400.0

EXIT_INTERRUPTED = 2
EXIT_BROKEN = 3
EXIT_USAGE = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises, and never says 1 when the harness itself is broken."""
    try:
        options = _parser().parse_args(arguments)
        command = importlib.import_module(f"harness.commands.{options.module}")
        try:
            return int(_run(command.execute(options)))
        except SystemExit as error:
            # No code of ours ends the process. Taken at its word, a library that gives up would make a CI green.
            raise SystemExitedError(
                f"the system's own code ended the process (exit {error.code}): nothing was judged"
            ) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stormproof: interrupted; there is no verdict, what was collected so far is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`stormproof list | head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN
    except Exception as error:  # noqa: BLE001 - the edge of the process: a crash of ours must not look like a verdict
        return _tell(leaf_of(error))


def _tell(error: BaseException) -> int:
    """Print one sentence about what went wrong, and return the exit code for it."""
    if isinstance(error, StormproofError):
        print(f"stormproof: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError):
        print(f"stormproof: {error}; nothing was judged, free the resource and try again", file=sys.stderr)
        return EXIT_BROKEN
    traceback.print_exception(error, file=sys.stderr)
    print(
        f"stormproof: the harness itself broke ({type(error).__name__}: {error}); this says nothing of the system, "
        "please report it with the lines above",
        file=sys.stderr,
    )
    return EXIT_BROKEN


def _run(command: Coroutine[object, object, int]) -> int:
    """Run a command on a loop that SIGTERM and SIGINT cancel, so that scopes end in order and nothing is left."""

    async def cancellable() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is not None:
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue  # started under nohup
                with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                    loop.add_signal_handler(number, task.cancel)
        return await command

    with asyncio.Runner() as runner:
        return runner.run(cancellable())


class SystemExitedError(StormproofError):
    """Code of the system under test called `exit` in the harness's process."""

    exit_code = EXIT_BROKEN


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (try `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stormproof",
        description="Proves, or refutes, that an event-driven system keeps its promises in a storm.",
        epilog="exit codes: 0 holds, 1 violated, 2 unknown, 3 the harness itself broke, 64 wrong use",
    )
    parser.add_argument("--version", action="version", version=f"stormproof {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    run = _command(commands, "run", "carry out experiments, judge and report")
    run.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="a name from `stormproof list`")
    _running(run)
    run.add_argument("--mutant", type=Path, metavar="FILE", help="plant the bug of this file in its process first")

    load = _command(commands, "load", "drive with Locust, then judge every order")
    load.add_argument("profile", metavar="PROFILE", help="a name from `stormproof list`")
    load.add_argument("--rate", type=_positive(RATE_MAX_PER_S), metavar="N", help="orders a second")
    load.add_argument("--duration", type=_positive(DURATION_MAX_S), metavar="S", help="seconds")
    _running(load)

    check = _command(commands, "check", "judge a saved run again, without a broker")
    check.add_argument("run", metavar="RUN", help=f"a run directory, or `{LATEST}`")

    explain = _command(commands, "explain", "the story of one operation across all channels")
    explain.add_argument("run", metavar="RUN", help=f"a run directory, or `{LATEST}`")
    explain.add_argument("key", metavar="KEY", help="what the operation is about, as reports and findings name it")

    mutants = _command(commands, "mutants", "run planted bugs against the invariants and print the kill matrix")
    mutants.add_argument("--from", dest="directory", type=Path, metavar="DIR", help="a directory of your own bugs")
    _running(mutants)

    up = _command(commands, "up", "start everything, print the addresses, wait for Ctrl-C")
    up.add_argument(
        "--listen",
        type=_listen,
        action="append",
        default=[],
        metavar="ROLE=HOST:PORT",
        help="give a process a fixed address, for example orders=127.0.0.1:8080",
    )
    _running(up)

    images = _command(commands, "images", "build or list the images of the container backend")
    images.add_argument(
        "action", choices=("build", "list"), help="build them from this host's binaries, or say which are here"
    )
    images.add_argument(
        "--nats-version",
        action="append",
        default=[],
        metavar="V",
        help="build: this published nats-server too (may be given several times)",
    )

    _command(commands, "list", "experiments, faults, invariants, load profiles and planted bugs")
    doctor = _command(commands, "doctor", "say what works on this host, what not, and how to get it")
    doctor.add_argument("--thorough", action="store_true", help="start each backend for real, and say how long it took")
    _somebodys_parts(doctor)
    return parser


def _command(commands: argparse._SubParsersAction[_Parser], name: str, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(module=name)
    command.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    command.add_argument(
        "--runs-dir", type=Path, default=Path(DEFAULT_DIRECTORY), metavar="DIR", help="where runs are kept"
    )
    return command


def _running(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--seed", type=_seed, default=None, metavar="N", help="all randomness comes from it (default: drawn)"
    )
    command.add_argument("--backend", choices=BACKENDS, default=EMBEDDED, help="where the real parts run")
    command.add_argument("--nats-version", metavar="V", help="a published nats-server, for example 2.12.4")
    command.add_argument("--postgres", action="store_true", help="keep the system's tables in a PostgreSQL server")
    command.add_argument(
        "--tls", action="store_true", help="the broker takes TLS alone, with the run's own certificates"
    )
    _somebodys_parts(command)
    command.add_argument(
        "--allow-fault",
        action="append",
        default=[],
        metavar="FAULT",
        help="external: this fault may harm your own parts too (may be given several times)",
    )


def _somebodys_parts(command: argparse.ArgumentParser) -> None:
    command.add_argument("--nats-url", metavar="URL", help="external: your broker (NATS_USER, NATS_PASSWORD let us in)")
    command.add_argument("--toxiproxy-url", metavar="URL", help="external: the API of your Toxiproxy on this host")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > SEED_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: give a whole number from 0 to {SEED_MAX}")
    return int(text)


def _listen(text: str) -> tuple[str, str]:
    role, equals, address = text.partition("=")
    host, colon, port = address.rpartition(":")
    if not (equals and colon and role and host and port.isdigit() and 0 < int(port) < 65536):  # noqa: PLR2004 - the end of the port range
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=HOST:PORT, for example orders=127.0.0.1:8080")
    return role, address


class _positive:  # noqa: N801 - used like a type
    def __init__(self, maximum: float) -> None:
        self._maximum = maximum

    def __call__(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number <= self._maximum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most {self._maximum:g}")
        return number
