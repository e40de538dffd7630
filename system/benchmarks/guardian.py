"""The guardian of a benchmark: a tiny process that outlives it by a moment and ends everything it left behind.

Promises: once the benchmark is gone, however it went (SIGKILL included), every process of the guardian's process group
is killed and the scratch directory is removed; then the guardian ends with 0.

Does not: survive SIGKILL of itself, or find a process that left the group. Ours do neither. Linux could instead kill
each child at the death of its parent (PR_SET_PDEATHSIG), but that follows the starting *thread*, is lost at setuid, and
removes no directory.

How it learns of the end: the benchmark alone holds the write end of the pipe on standard input, close-on-exec. End of
file therefore also means that no child of the benchmark stands between fork and exec, where it might not have joined
the group yet. It is started as a file (`python -I guardian.py SCRATCH`), so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

REMOVE_ATTEMPTS = 200
REMOVE_EVERY_S = 0.02


def main(scratch: Path) -> int:
    """Wait for the end of the benchmark, then kill and remove; 0 when nothing is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its work is done, not when a terminal closes
    sys.stdin.buffer.read()
    _kill_the_group_without_me()
    return 0 if _is_removed(scratch) else 1


def _kill_the_group_without_me() -> None:
    # The leader of a group may move into another one, which takes a process to found it. While the leader lives its
    # old group's number is nobody else's.
    group = os.getpid()
    founder = os.fork()
    if founder == 0:
        signal.pause()
        os._exit(0)
    os.setpgid(founder, founder)
    os.setpgid(0, founder)
    with contextlib.suppress(ProcessLookupError):  # everybody ended by themselves
        os.killpg(group, signal.SIGKILL)
    os.kill(founder, signal.SIGKILL)
    os.waitpid(founder, 0)


def _is_removed(scratch: Path) -> bool:
    # A process that is just dying may still add a file behind the walk, hence more than one attempt.
    for _ in range(REMOVE_ATTEMPTS):
        shutil.rmtree(scratch, ignore_errors=True)
        if not scratch.exists():
            return True
        time.sleep(REMOVE_EVERY_S)
    return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
