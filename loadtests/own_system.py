"""A system of our own for plain `locust`: `harness up` as a child, and its evidence judged at the end.

Promises: the system answers when `start` returns; `judge` returns a verdict or says why there is none; the child is
told to end whenever this process ends, SIGKILL included (where the kernel can: Linux).

Does not: import Locust or gevent. It waits by looking, which is cooperative once Locust has patched `time.sleep`, and
plain in a test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

HARNESS = (sys.executable, "-m", "harness")
READY_WITHIN_S = 600.0
"""The first start on a machine builds Toxiproxy, with visible progress; later ones take about a second."""

EVIDENCE_WITHIN_S = 300.0
"""Settling, stopping and collecting after SIGINT; grows with the number of orders."""

JUDGE_WITHIN_S = 300.0
GIVE_UP_WITHIN_S = 10.0
LOOK_EVERY_S = 0.02
FIRST_LINE_BYTES_MAX = 64 * 1024

HOLDS, VIOLATED, UNKNOWN, BROKEN = 0, 1, 2, 3
VERDICTS = {HOLDS: "HOLDS", VIOLATED: "VIOLATED", UNKNOWN: "UNKNOWN", BROKEN: "none, the harness broke"}

# Started by a process that may be killed without a word, the harness must hear of it: the kernel sends it SIGINT then.
_TOLD_OF_OUR_DEATH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG, kept over exec
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class OwnSystemError(Exception):
    """The system could not be started, or ended by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What `harness check` said. exit_code: 0 holds, 1 violated, 2 unknown, 3 broken. report: as it was printed."""

    exit_code: int
    report: str

    @property
    def verdict(self) -> str:
        """The exit code in words."""
        return VERDICTS[self.exit_code]


class OwnSystem:
    """A running `harness up`. url: where orders are placed. run: its run directory."""

    def __init__(self, *, child: subprocess.Popen[bytes], said: BinaryIO, harness: tuple[str, ...]) -> None:
        """Made by `start`."""
        self.url = ""
        self.run = Path()
        self._child = child
        self._said = said
        self._harness = harness

    @classmethod
    def start(cls, *, harness: tuple[str, ...] = HARNESS, ready_within_s: float = READY_WITHIN_S) -> Self:
        """Start everything and wait until it answers. Raises OwnSystemError. Its progress goes to standard error."""
        said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child; a file, for a pipe could fill
        # A session of its own: Ctrl-C is for Locust, which drains first and then tells the system.
        child = subprocess.Popen(  # noqa: S603 - our own command, no shell
            _wrapped((*harness, "up", "--json")), stdin=subprocess.DEVNULL, stdout=said, start_new_session=True
        )
        system = cls(child=child, said=said, harness=harness)
        try:
            system._wait_ready(ready_within_s)
        except BaseException:
            system.give_up()
            raise
        return system

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def judge(self) -> Judged:
        """Let it settle, collect and stop, then judge its run. Never raises; what went wrong is in the report."""
        if not self.is_running:
            self.give_up()
            return _broken(f"the system ended by itself with code {self._child.returncode}")
        self._child.send_signal(signal.SIGINT)
        try:
            code = self._child.wait(timeout=EVIDENCE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.give_up()
            return _broken(f"the system did not stop within {EVIDENCE_WITHIN_S:g} s; look into {self.run / 'logs'}")
        self._said.close()
        if code < 0 or code == BROKEN:
            return _broken(f"the system ended with code {code} and left no evidence; look into {self.run / 'logs'}")
        try:
            checked = subprocess.run(  # noqa: S603 - our own command, no shell
                (*self._harness, "check", str(self.run)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                check=False,
                timeout=JUDGE_WITHIN_S,
            )
        except subprocess.TimeoutExpired:
            return _broken(f"judging took longer than {JUDGE_WITHIN_S:g} s; try `stormproof check {self.run}`")
        code = checked.returncode if checked.returncode in VERDICTS else BROKEN
        return Judged(exit_code=code, report=checked.stdout.decode("utf-8", "replace"))

    def give_up(self) -> None:
        """End it without evidence; its guardian ends what it started."""
        self._child.terminate()
        try:
            self._child.wait(timeout=GIVE_UP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._said.close()

    def _wait_ready(self, within_s: float) -> None:
        deadline_s = time.monotonic() + within_s
        while not (line := self._first_line()):
            if not self.is_running:
                raise OwnSystemError(
                    f"the system did not start: `{' '.join(self._harness)} up` ended with code "
                    f"{self._child.returncode} (what it said stands above); run `stormproof doctor`, "
                    "or give --host to load a running one"
                )
            if time.monotonic() > deadline_s:
                raise OwnSystemError(f"the system was not ready within {within_s:g} s; run `stormproof doctor`")
            time.sleep(LOOK_EVERY_S)
        try:
            document = json.loads(line)
            self.url, self.run = str(document["orders"]), Path(str(document["run"]))
        except (ValueError, TypeError, KeyError) as error:
            raise OwnSystemError(
                f"`harness up --json` printed {line[:200]!r}, which names no orders and run"
            ) from error

    def _first_line(self) -> bytes:
        # The child has the same open file, so the position is shared; pread leaves it alone.
        line, newline, _ = os.pread(self._said.fileno(), FIRST_LINE_BYTES_MAX, 0).partition(b"\n")
        return line if newline else b""


def _wrapped(argv: tuple[str, ...]) -> tuple[str, ...]:
    if sys.platform != "linux":
        return argv
    return (sys.executable, "-I", "-S", "-c", _TOLD_OF_OUR_DEATH, str(os.getpid()), *argv)


def _broken(why: str) -> Judged:
    return Judged(exit_code=BROKEN, report=f"no verdict: {why}\n")
