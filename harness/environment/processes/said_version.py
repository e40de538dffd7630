"""What a program says when it is asked for its version: the first sign of whether it is what it is taken for.

Does not: judge the version; callers do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.environment.processes.bounded_command import run_bounded

ANSWER_WITHIN_S = 10.0
WORDS_MAX = 120


class NoVersionError(Exception):
    """It said none. The words begin with "it": callers say which program."""


async def ask_version(binary: Path, option: str, pattern: re.Pattern[str]) -> re.Match[str]:
    """Where the pattern is in what the program answers to `option`. Raises NoVersionError."""
    try:
        finished = await run_bounded((str(binary), option), environment={"PATH": os.defpath}, within_s=ANSWER_WITHIN_S)
    except OSError as error:
        raise NoVersionError(f"it does not start ({error.strerror})") from error
    if finished.exit_code is None:
        raise NoVersionError(f"it did not answer {option} within {ANSWER_WITHIN_S:g} s")
    said = pattern.search(finished.output)
    if finished.exit_code != 0 or said is None:
        words = finished.output.strip()[:WORDS_MAX]
        raise NoVersionError(f"it answered {option} with exit code {finished.exit_code} and {words!r}")
    return said
