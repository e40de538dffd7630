"""The operation history: every request of the workload with its outcome, in real-time order.

Each finished operation is appended to `operations.jsonl` at once, so the history is on disk before it is judged,
whoever made it: the harness's own workload, or Locust in a process of its own.

One line is one JSON object with the fields of `harness.records.Operation`. A torn last line, of a writer that was
killed, is left out and counted.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from harness.records import Channel, Operation, Outcome

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "operations.jsonl"
_FIELDS = frozenset(field.name for field in fields(Operation))


class History:
    """Counts and keeps operations as they end; lives on one event loop."""

    def __init__(self, path: Path) -> None:
        """Append to the file at `path`."""
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self.begun = 0
        self.operations: list[Operation] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def begin(self) -> None:
        """Count an operation that is about to be sent."""
        self.begun += 1
        for count, waiter in self._waiting:
            if self.begun >= count and not waiter.done():
                waiter.set_result(None)

    async def wait_begun(self, count: int) -> None:
        """Wait until so many operations have begun; the caller sets the deadline."""
        if self.begun >= count:
            return
        entry = (count, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        finally:
            self._waiting.remove(entry)

    def end(self, operation: Operation) -> None:
        """Keep an operation that has its outcome."""
        self._file.write(json.dumps(asdict(operation)) + "\n")
        self.operations.append(operation)

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()


def read_history(path: Path) -> tuple[list[Operation], int]:
    """Return the operations of a history file, and how many lines were torn or not operations."""
    operations = []
    torn = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                operations.append(_operation(json.loads(line)))
            except (ValueError, TypeError, KeyError):
                torn += 1
    return operations, torn


def operations_channel(placed: int, operations: list[Operation], torn: int) -> Channel:
    """Say whether the history is whole: every operation that was placed has a line.

    placed: how many the workload says it began, -1 when it did not live to say.
    """
    gaps = []
    if torn:
        gaps.append(f"{torn} line(s) of the history are torn")
    if placed < 0:
        gaps.append("the workload died before it said how many operations it began")
    elif placed != len(operations):
        gaps.append(f"{placed} operations were begun, {len(operations)} have an outcome on record")
    return Channel(
        name="operations",
        expected=None if placed < 0 else placed,
        received=len(operations),
        complete=not gaps,
        why="; ".join(gaps),
    )


def _operation(fields_read: dict[str, object]) -> Operation:
    if set(fields_read) != _FIELDS:
        raise ValueError(f"fields {sorted(fields_read)} are not those of an operation")
    fields_read["outcome"] = Outcome(str(fields_read["outcome"]))
    return Operation(**fields_read)  # type: ignore[arg-type]  # the fields were compared; types are the writer's promise
