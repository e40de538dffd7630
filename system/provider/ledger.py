"""The provider's ledger: an append-only file of JSON lines, fsynced before anybody is told.

Promises: `append` returns only after the line is on disk, and lines that wait together share one fsync; sequence
numbers are 1, 2, 3, ... without a gap; a last line cut short by a crash is removed at the next start, with a warning,
and nobody was ever told of it. A damaged line anywhere else stops the start: money is not guessed. One process at a
time may hold the file. Should the disk refuse a line and then refuse to take it back, nobody can tell what is in the
file: that is said (`LedgerUnknownError`), and nothing is written any more until the next start has read it.

    {"seq":1,"kind":"charge","charge_id":"ch_..","order_id":"..","idempotency_key":"..","amount_minor":1250,"currency":"EUR","at_ns":..}

| kind | means | `charge_id` | `idempotency_key` | more members |
|---|---|---|---|---|
| `charge` | money moved | its id | of the charge | |
| `decline` | none did, for good | empty | of the charge | |
| `refund` | the money of a charge went back | of that charge | of the refund | `charge_key`, `refund_id` |
| `void` | a charge was ruled out before it was made, for good | empty | of the refund | `charge_key` |

`charge_key` is the idempotency key of the charge that is undone. Members may join; those of the first line stay.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import msgspec

from system.errors import StartError

log = logging.getLogger(__name__)

GATHER_S = 0.004
GATHER_MAX = 64
"""How long an entry waits for company, and how much company is enough.

A write costs 170 µs of CPU, two thirds of it in the fsync, for one line as for fifty: at 10,000 lines a second 7 µs a
line when they gather for 2 ms, 4 µs for 4 ms. But whoever asks over few connections may have all of them waiting here.
"""

Kind = Literal["charge", "decline", "refund", "void"]


class LedgerOpenError(StartError):
    """The ledger cannot be used."""


class LedgerError(Exception):
    """An entry could not be made durable; it does not count."""


class LedgerUnknownError(LedgerError):
    """An entry could neither be made durable nor taken back: whether it counts shows at the next start."""


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One line. seq: 0 until it is written. amount_minor: hundredths of the currency. at_ns: Unix time."""

    seq: int
    kind: Kind
    charge_id: str
    order_id: str
    idempotency_key: str
    amount_minor: int
    currency: str
    at_ns: int
    charge_key: str = ""
    refund_id: str = ""

    @property
    def decides(self) -> str:
        """The idempotency key of the charge whose outcome this is."""
        return self.charge_key or self.idempotency_key


class _Group:
    """Entries that are written together, and who waits for each."""

    __slots__ = ("entries", "futures")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.futures: list[asyncio.Future[Entry]] = []


class Ledger:
    """The file, from `async with` until its end; `entries` are those found at the start.

    on_settled: called with the entries of each write before whoever appended them goes on, and with what went wrong
    (None: they are durable). It is what memory of the ledger is kept by, because it is called even if nobody waits
    for the entry any more.
    """

    def __init__(self, path: Path) -> None:
        self.on_settled: Callable[[Sequence[Entry], LedgerError | None], None] = _nobody
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.entries = self._read()
            # A killed process may have left lines that are in the file and not yet on disk, and a new file may not be
            # in its directory yet.
            os.fsync(self._fd)
            _sync_directory(path.parent)
            self._length = os.fstat(self._fd).st_size
        except BlockingIOError:
            raise LedgerOpenError(f"the ledger {path} is in use by another process; set PROVIDER_LEDGER") from None
        except OSError as error:
            raise LedgerOpenError(f"the ledger {path} cannot be used: {error.strerror}; set PROVIDER_LEDGER") from None
        self._last_seq = self.entries[-1].seq if self.entries else 0
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = _Group()
        self._is_writing = False
        self._unknown: LedgerUnknownError | None = None
        self._encoder = msgspec.json.Encoder()
        # A thread of our own: an executor's way to it and back costs as much again as the write.
        self._groups: queue.SimpleQueue[tuple[_Group, bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_groups, name="ledger", daemon=True)
        self._is_done = asyncio.Event()
        self._is_done.set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Write what waits."""
        await self._is_done.wait()
        self._groups.put(None)
        self._thread.join()
        os.close(self._fd)

    @property
    def is_sound(self) -> bool:
        """False once nobody can tell what is in the file."""
        return self._unknown is None

    def append(self, entry: Entry) -> asyncio.Future[Entry]:
        """Write one entry; done once it is on disk and has its number, `LedgerError` if it is not."""
        durable: asyncio.Future[Entry] = self._loop.create_future()
        waiting = self._waiting
        waiting.entries.append(entry)
        waiting.futures.append(durable)
        if not self._is_writing:
            self._gather()
        return durable

    def _gather(self) -> None:
        """Begin to write when enough came together, or when it has waited long enough."""
        if len(self._waiting.entries) >= GATHER_MAX:
            self._begin_write()
        elif self._timer is None:
            self._is_done.clear()
            self._timer = self._loop.call_later(GATHER_S, self._begin_write)

    def _begin_write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._waiting = self._waiting, _Group()
        self._is_writing = True
        if self._unknown is not None:
            self._loop.call_soon(self._settle, group, self._unknown)
            return
        # Numbered here, when they are written: a group that fails leaves no gap.
        for seq, entry in enumerate(group.entries, start=self._last_seq + 1):
            entry.seq = seq
        self._groups.put((group, self._encoder.encode_lines(group.entries)))

    def _settle(self, group: _Group, failure: LedgerError | None) -> None:
        """A write has ended."""
        self._is_writing = False
        if failure is None:
            self._last_seq += len(group.entries)
        elif isinstance(failure, LedgerUnknownError) and self._unknown is None:
            log.critical("%s", failure)
            self._unknown = failure
        self.on_settled(group.entries, failure)
        for entry, durable in zip(group.entries, group.futures, strict=True):
            if durable.done():
                continue  # whoever waited was cancelled; the entry counts all the same
            if failure is None:
                durable.set_result(entry)
            else:
                durable.set_exception(failure)
        if self._waiting.entries:
            self._gather()
        else:
            self._is_done.set()

    def _write_groups(self) -> None:
        """Write one group after the other. Runs in the ledger's thread."""
        while (next_one := self._groups.get()) is not None:
            group, lines = next_one
            failure: LedgerError | None = None
            try:
                self._write(lines)
            except LedgerError as error:
                failure = error
            except OSError as error:
                failure = LedgerError(f"{len(group.entries)} entries could not be written: {error.strerror}")
            self._loop.call_soon_threadsafe(self._settle, group, failure)

    def _write(self, lines: bytes) -> None:
        """All of it or none: a part written to a full disk is cut off again."""
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, "no space left for a whole line")  # noqa: TRY301 - one way back for both
            os.fdatasync(self._fd)  # the lines and the length, not the time of the last change
        except OSError as error:
            self._take_back(error)
            raise
        self._length += len(lines)

    def _take_back(self, reason: OSError) -> None:
        """Cut off what was written, durably: else a power cut could bring back a charge that we said was not made."""
        try:
            os.ftruncate(self._fd, self._length)
            os.fsync(self._fd)
        except OSError as error:
            raise LedgerUnknownError(
                f"{self._path} could not be written ({reason.strerror}), nor cut back to {self._length} bytes "
                f"({error.strerror}): what the last lines say is unknown until the next start"
            ) from None

    def _read(self) -> list[Entry]:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.warning(
                "the ledger's last line was cut short by a crash (%d bytes); it is removed", len(content) - whole
            )
            os.ftruncate(self._fd, whole)
        decoder = msgspec.json.Decoder(Entry)
        entries = []
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                entry = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise LedgerOpenError(f"line {number} of the ledger {self._path} is damaged: {error}") from None
            if entry.seq != number:
                raise LedgerOpenError(f"line {number} of the ledger {self._path} has seq {entry.seq}")
            entries.append(entry)
        return entries


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _nobody(entries: Sequence[Entry], failure: LedgerError | None) -> None:
    """The default of `Ledger.on_settled`."""
