"""Plain tables for people: colours only where the stream is a terminal, and no lie when its reader goes away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from typing import TextIO

_PLAIN_WIDTH = 120


class _HonestConsole(Console):
    def on_broken_pipe(self) -> NoReturn:
        # Rich would end the process with 1, which means VIOLATED here; `harness.cli` knows what to do.
        raise BrokenPipeError


def console_for(stream: TextIO) -> Console:
    """Return a console that prints to a stream."""
    return _HonestConsole(file=stream, highlight=False, width=None if stream.isatty() else _PLAIN_WIDTH)


def table_of(*columns: str, has_header: bool = True) -> Table:
    """Return an empty table; a column whose name begins with `>` is aligned to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=has_header)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def near(path: Path | str) -> str:
    """Return a path as a person here would type it: relative when it lies below the current directory."""
    path = Path(path)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
