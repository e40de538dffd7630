"""One process under supervision: how it is started, signalled, and what its log says.

Promises: own session and process group (Ctrl-C reaches the harness alone), standard input from /dev/null, both outputs
appended to one log file that survives the harness. A signal to the group reaches a wrapper and what it started.

Does not: decide when; that is `supervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from signal import Signals
from typing import IO

from harness.environment.processes.exit_watch import ExitWatch
from harness.environment.processes.keeper import descendants_of
from harness.errors import EnvironmentFailedError, PlanError

LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 8 * 1024
STOP_GRACE_S = 15.0
ARGV_CHARACTERS_MAX = 500
_SEPARATOR = "--- stormproof: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What it takes to start a process, and to start it again.

    environment: all its variables; the supervisor adds the owner label only.
    stop_grace_s: how long SIGTERM may take before the process counts as stuck and is killed.
    image: what a container host runs it in; a process host ignores it.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path
    stop_grace_s: float = STOP_GRACE_S
    directory: Path | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        if not self.argv or self.stop_grace_s <= 0:
            raise PlanError(f"process {self.name!r} needs an argv and stop_grace_s={self.stop_grace_s} above 0")


@dataclass(slots=True, kw_only=True)
class SupervisedProcess:
    """A process that was started, alive or not."""

    command: Command
    boot: int
    child: subprocess.Popen[bytes]
    watch: ExitWatch
    is_expected_to_end: bool = False
    is_paused: bool = False

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.watch.exit_code is None

    @property
    def end(self) -> asyncio.Future[int]:
        """Its end; the result is its exit code."""
        return self.watch.ended

    @property
    def pid(self) -> int:
        """Its pid, which is also its process group and session."""
        return self.child.pid

    def signal(self, number: Signals) -> None:
        """Signal the process itself; nothing when it has just ended."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(number)

    @property
    def group(self) -> list[int]:
        """The pids of those whom `signal_group` reaches, its own first."""
        return [self.pid, *(pid for pid in descendants_of(self.pid) if _group_of(pid) == self.pid)]

    def signal_group(self, number: Signals) -> None:
        """Signal it and everything it started in its group; nothing when all of that has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    @property
    def how_it_ended(self) -> str:
        """`exit code 0` or `signal SIGKILL`; `running` while it runs."""
        exit_code = self.watch.exit_code
        if exit_code is None:
            return "running"
        if exit_code >= 0:
            return f"exit code {exit_code}"
        with contextlib.suppress(ValueError):
            return f"signal {Signals(-exit_code).name}"
        return f"signal {-exit_code}"


def launch(command: Command, *, boot: int, label: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process. boot: 1 for the first start of this name in the run. Raises EnvironmentFailedError."""
    try:
        with open_log(command, boot=boot, words=shlex.join(command.argv)) as log:
            return subprocess.Popen(  # noqa: S603 - the topology's own argv, no shell
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=command.directory,
                env={**command.environment, **label},
                start_new_session=True,
            )
    except OSError as error:
        raise EnvironmentFailedError(
            f"cannot start {command.name}: {command.argv[0]}: {error.strerror}"
            + (f" ({error.filename})" if error.filename not in (None, command.argv[0]) else "")
        ) from error


def open_log(command: Command, *, boot: int, words: str) -> IO[bytes]:
    """Open the command's log for a start that begins now, and say so in it. words: what is started. Raises OSError."""
    command.log_path.parent.mkdir(parents=True, exist_ok=True)
    log = command.log_path.open("ab")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    said = " ".join(words.split())[:ARGV_CHARACTERS_MAX]  # one line, whatever it holds
    try:
        log.write(f"{_SEPARATOR}boot {boot} of {command.name} at {now}: {said}\n".encode())
        log.flush()
    except OSError:
        log.close()
        raise
    return log


def log_tail(path: Path, *, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines since the process last started, indented; a remark when there are none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError as error:
        return f"  (no log: {error.strerror})"
    before, separator, after = text.rpartition(_SEPARATOR)
    said = after.split("\n", 1)[-1] if separator else before or text
    kept = [line for line in said.splitlines() if line.strip()][-lines:]
    return "\n".join(f"  {line}" for line in kept) if kept else "  (it wrote nothing)"


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None
