"""The command for dead letters. It finds the broker as the services do, by `NATS_URL` and its companions.

    python -m system.deadletters list [--json] [--max N]
    python -m system.deadletters show SEQ
    python -m system.deadletters replay SEQ... | --all
    python -m system.deadletters drop SEQ... | --all

`--all` means those that are there when the command begins. Exit codes: 0 everything was done, 1 something was not
(standard error says what; it stays), 64 wrong use or a setting that makes no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

import msgspec

from system.deadletters.content import readable
from system.deadletters.letter import DeadLetter, NoDeadLetterError, Stray
from system.deadletters.stream import DeadLetterStream, ReplayError
from system.errors import StartError
from system.jetstream import (
    Connection,
    Publisher,
    PublishRefusedError,
    PublishUnavailableError,
    PublishUnknownError,
    RequestError,
)
from system.metrics import Metrics
from system.service import EXIT_BROKEN, EXIT_CONFIGURATION
from system.settings import NatsSettings, nats_settings
from system.variables import ConfigurationError

LIST_MAX = 1000
_COLUMNS = "{:>6}  {:20}  {:9}  {:24}  {:>10}  {:32}  {}\n"


class _NotDoneError(Exception):
    """One dead letter was left as it was; the message says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_CONFIGURATION, f"{self.prog}: {message}\n")


class _Told(msgspec.Struct, kw_only=True):
    """A dead letter as `list --json` has it. time: ISO 8601. size_bytes: of the message; null if it is gone."""

    seq: int
    time: str
    kind: str
    consumer: str
    deliveries: int
    order_id: str
    reason: str
    subject: str
    stream: str
    sequence: int
    size_bytes: int | None


class _List(msgspec.Struct, kw_only=True):
    total: int
    dead_letters: list[_Told]
    strays: list[int]


def main(arguments: Sequence[str]) -> int:
    """Carry out one command; returns the exit code."""
    asked = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = nats_settings(os.environ)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, error)
    try:
        return asyncio.run(_carry_out(asked, settings))
    except (StartError, RequestError, NoDeadLetterError) as error:
        return _fail(EXIT_BROKEN, error)
    except KeyboardInterrupt:
        return _fail(EXIT_BROKEN, "interrupted; what was not reported as done was not done, or is done again safely")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m system.deadletters", description="Messages that a consumer gave up.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    listing = commands.add_parser("list", help="what is there, oldest first")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    listing.add_argument("--max", type=_positive, default=LIST_MAX, metavar="N", help=f"at most N, else {LIST_MAX}")
    showing = commands.add_parser("show", help="everything about one")
    showing.add_argument("seq", type=_positive, metavar="SEQ")
    for name, text in (("replay", "publish the message again, then remove the dead letter"), ("drop", "remove it")):
        command = commands.add_parser(name, help=text)
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("seq", type=_positive, nargs="*", default=[], metavar="SEQ")
        which.add_argument("--all", action="store_true", help="all that are there now")
    return parser


async def _carry_out(asked: argparse.Namespace, settings: NatsSettings) -> int:
    metrics = Metrics()
    async with Connection(settings, name="deadletters", metrics=metrics) as connection:
        await connection.open()
        publisher = Publisher(connection, metrics=metrics)
        await publisher.start()
        stream = DeadLetterStream(connection, publisher)
        match asked.command:
            case "list":
                return await _list(stream, is_json=asked.json, number_max=asked.max)
            case "show":
                _show(await stream.letter(asked.seq))
                return 0
            case "replay":
                return await _each(stream, asked.seq, _replay)
            case _:
                return await _each(stream, asked.seq, _drop)


async def _list(stream: DeadLetterStream, *, is_json: bool, number_max: int) -> int:
    found = _List(total=await stream.count(), dead_letters=[], strays=[])
    async for each in stream.letters():
        if len(found.dead_letters) + len(found.strays) == number_max:
            break
        if isinstance(each, Stray):
            found.strays.append(each.number)
            sys.stderr.write(f"{each.why}\n")
        else:
            found.dead_letters.append(_told(each))
    if is_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        return 0
    if found.dead_letters:
        sys.stdout.write(_COLUMNS.format("SEQ", "TIME", "KIND", "CONSUMER", "DELIVERIES", "ORDER", "REASON"))
    for told in found.dead_letters:
        cells = (told.seq, told.time, told.kind, told.consumer, told.deliveries, told.order_id or "-", told.reason)
        sys.stdout.write(_COLUMNS.format(*(printable(str(cell)) for cell in cells)))
    shown = len(found.dead_letters) + len(found.strays)
    sys.stdout.write(f"{found.total} dead letters" + (f", {shown} shown\n" if shown < found.total else "\n"))
    return 0


def _show(letter: DeadLetter) -> None:
    told = _told(letter)
    for name in told.__struct_fields__:
        sys.stdout.write(f"{name}: {printable(str(getattr(told, name)))}\n")
    sys.stdout.write(f"replay_id: {printable(letter.replay_id)}\n\nheaders of the message:\n")
    for name, value in letter.original_headers.items():
        sys.stdout.write(f"  {printable(name)}: {printable(value)}\n")
    sys.stdout.write("\n")
    if letter.payload is None:
        sys.stdout.write("the message was left behind in its stream, and is gone from there\n")
        return
    for line in readable(letter.death.subject, letter.payload):
        sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.write(f"\nbase64: {base64.b64encode(letter.payload).decode()}\n")


async def _each(
    stream: DeadLetterStream, numbers: Sequence[int], carry_out: Callable[[DeadLetterStream, int], Awaitable[str]]
) -> int:
    """Carry it out on each; one that cannot be done does not keep the others."""
    failed = 0
    async for number in _numbers(stream, numbers):
        try:
            sys.stdout.write(f"{await carry_out(stream, number)}\n")
        except (_NotDoneError, NoDeadLetterError) as error:
            failed += 1
            sys.stderr.write(f"{number}: {error}\n")
        sys.stdout.flush()
    return EXIT_BROKEN if failed else 0


async def _numbers(stream: DeadLetterStream, numbers: Sequence[int]) -> AsyncIterator[int]:
    if numbers:
        for number in dict.fromkeys(numbers):
            yield number
    else:
        async for each in stream.letters():
            yield each.number


async def _replay(stream: DeadLetterStream, number: int) -> str:
    letter = await stream.letter(number)
    try:
        ack = await stream.replay(letter)
    except (ReplayError, PublishRefusedError, PublishUnavailableError, PublishUnknownError) as error:
        raise _NotDoneError(f"it stays: {error}") from None
    before = " (it had been published before)" if ack.duplicate else ""
    return f"{number}: replayed as {ack.sequence} of {ack.stream}{before}"


async def _drop(stream: DeadLetterStream, number: int) -> str:
    if not await stream.remove(number):
        raise NoDeadLetterError(f"there is no dead letter {number}")
    return f"{number}: dropped"


def _told(letter: DeadLetter) -> _Told:
    death = letter.death
    return _Told(
        seq=letter.number,
        time=datetime.fromtimestamp(death.at_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        kind=death.kind,
        consumer=death.consumer,
        deliveries=death.deliveries,
        order_id=death.order_id,
        reason=death.reason,
        subject=death.subject,
        stream=death.stream,
        sequence=death.sequence,
        size_bytes=None if letter.payload is None else len(letter.payload),
    )


def printable(text: str) -> str:
    """The text with what would steer a terminal spelled out: others chose it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _fail(code: int, error: object) -> int:
    sys.stderr.write(f"{error}\n")
    return code
