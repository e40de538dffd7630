"""The command as a person or a CI job runs it: in a process of its own, with what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[1]
RUN_WITHIN_S = 120.0


def start_stormproof(*arguments: str) -> subprocess.Popen[str]:
    """Start the command; its output is read through pipes."""
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "harness", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def stormproof(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    with start_stormproof(*arguments) as process:
        try:
            stdout, stderr = process.communicate(timeout=RUN_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def document(finished: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return the one JSON document that the command printed; an AssertionError shows what it said instead."""
    try:
        parsed = json.loads(finished.stdout)
    except ValueError as error:
        raise AssertionError(
            f"exit code {finished.returncode}, no JSON: {finished.stdout!r}\n{finished.stderr}"
        ) from error
    if not isinstance(parsed, dict):
        raise TypeError(f"the document is a {type(parsed).__name__}")
    return parsed


def rows(of: dict[str, object], name: str) -> list[dict[str, object]]:
    """Return a list of objects that stands in a document."""
    found = of[name]
    assert isinstance(found, list), f"{name} is {found!r}"
    return found


def left_over(run: str) -> list[str]:
    """Return what still carries the label of a run: processes, and scratch directories."""
    return [*_processes(run), *(str(path) for path in _scratch(run))]


def _processes(run: str) -> Iterable[str]:
    for process in psutil.process_iter():
        try:
            label = process.environ().get("STORMPROOF_OWNER", "")
            if run in label:
                yield " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue  # it ended while we looked, or is not ours


def _scratch(run: str) -> Iterable[Path]:

    return Path(tempfile.gettempdir()).glob(f"stormproof-{run}*")
