"""The provider's ledger: an append-only file of JSON lines, fsynced before anybody is told.

Promises: `append` returns only after the line is on disk, and lines that wait together share one fsync; sequence
numbers are 1, 2, 3, ... without a gap; a last line cut short by a crash is removed at the next start, with a warning,
and nobody was ever told of it. A damaged line anywhere else stops the start: money is not guessed. One process at a
time may hold the file.

    {"seq":1,"kind":"charge","charge_id":"ch_..","order_id":"..","idempotency_key":"..","amount_minor":1250,"currency":"EUR","at_ns":..}

`kind` is `charge` (money moved; `charge_id` is set) or `decline` (none did; remembered, because declines are final).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

import msgspec

from system.errors import StartError

log = logging.getLogger(__name__)

GATHER_S = 0.002
"""How long an entry waits for company: an fsync and two wake-ups of a thread cost the same for one as for fifty."""

Kind = Literal["charge", "decline"]


class LedgerOpenError(StartError):
    """The ledger cannot be used."""


class LedgerError(Exception):
    """An entry could not be made durable; it does not count."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line. amount_minor: hundredths of the currency. at_ns: Unix time."""

    seq: int
    kind: Kind
    charge_id: str
    order_id: str
    idempotency_key: str
    amount_minor: int
    currency: str
    at_ns: int


class Ledger:
    """The file, from `async with` until its end; `entries` are those found at the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.entries = self._read()
            self._length = os.fstat(self._fd).st_size
        except BlockingIOError:
            raise LedgerOpenError(f"the ledger {path} is in use by another process; set PROVIDER_LEDGER") from None
        except OSError as error:
            raise LedgerOpenError(f"the ledger {path} cannot be used: {error.strerror}; set PROVIDER_LEDGER") from None
        self._last_seq = self.entries[-1].seq if self.entries else 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._tasks = asyncio.TaskGroup()
        self._waiting: list[tuple[_Draft, asyncio.Future[Entry]]] = []
        self._is_writing = False
        self._encoder = msgspec.json.Encoder()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(None, None, None)
        self._thread.shutdown()
        os.close(self._fd)

    async def append(
        self, kind: Kind, *, charge_id: str, order_id: str, idempotency_key: str, amount_minor: int, currency: str
    ) -> Entry:
        """Write one entry and return it once it is on disk; `LedgerError` if it is not."""
        draft = _Draft(
            kind=kind,
            charge_id=charge_id,
            order_id=order_id,
            idempotency_key=idempotency_key,
            amount_minor=amount_minor,
            currency=currency,
            at_ns=time.time_ns(),
        )
        durable: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append((draft, durable))
        if not self._is_writing:
            self._is_writing = True
            self._tasks.create_task(self._write_all())
        return await durable

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            group, self._waiting = self._waiting, []
            # Numbered here, when they are written: a group that fails leaves no gap.
            entries = [draft.numbered(seq) for seq, (draft, _) in enumerate(group, start=self._last_seq + 1)]
            lines = b"".join(self._encoder.encode(entry) + b"\n" for entry in entries)
            failure: LedgerError | None = None
            try:
                await loop.run_in_executor(self._thread, self._write, lines)
                self._last_seq += len(entries)
            except OSError as error:
                failure = LedgerError(f"{len(entries)} entries could not be written: {error.strerror}")
            for entry, (_, durable) in zip(entries, group, strict=True):
                if durable.done():
                    continue  # whoever waited was cancelled; the entry counts all the same
                if failure is None:
                    durable.set_result(entry)
                else:
                    durable.set_exception(failure)
        self._is_writing = False

    def _write(self, lines: bytes) -> None:
        """All of it or none: a part written to a full disk is cut off again. Runs in the ledger's thread."""
        is_whole = False
        try:
            is_whole = os.write(self._fd, lines) == len(lines)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._length)
            raise
        if not is_whole:
            os.ftruncate(self._fd, self._length)
            raise OSError(errno.ENOSPC, "no space left for a whole line")
        self._length += len(lines)

    def _read(self) -> list[Entry]:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.warning(
                "the ledger's last line was cut short by a crash (%d bytes); it is removed", len(content) - whole
            )
            os.ftruncate(self._fd, whole)
            os.fsync(self._fd)
        decoder = msgspec.json.Decoder(Entry)
        entries = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise LedgerOpenError(f"line {number} of the ledger {self._path} is damaged: {error}") from None
            if entry.seq != number:
                raise LedgerOpenError(f"line {number} of the ledger {self._path} has seq {entry.seq}")
            entries.append(entry)
        return entries


class _Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An entry before it has its number."""

    kind: Kind
    charge_id: str
    order_id: str
    idempotency_key: str
    amount_minor: int
    currency: str
    at_ns: int

    def numbered(self, seq: int) -> Entry:
        return Entry(
            seq=seq,
            kind=self.kind,
            charge_id=self.charge_id,
            order_id=self.order_id,
            idempotency_key=self.idempotency_key,
            amount_minor=self.amount_minor,
            currency=self.currency,
            at_ns=self.at_ns,
        )
