"""Who runs a server that refuses to be root, and how he gets to what he needs.

Promises: where the harness is root the servant is `nobody`, else whoever runs the harness; he can pass through a run's
scratch directory, but neither list it nor read what is private in there.

Does not: open any directory outside the scratch directory.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path

from harness.environment.processes import keeper
from harness.environment.processes.guardian import MARKER
from harness.errors import EnvironmentFailedError

SERVANT = "nobody"


def kept(command: tuple[str, ...], *, pid_file: Path) -> tuple[str, ...]:
    """The command that runs this one as the servant, under a keeper."""
    user = SERVANT if os.geteuid() == 0 else keeper.OURSELVES
    return (sys.executable, "-I", "-S", keeper.__file__, user, str(pid_file), *command)


def hand_over(*paths: Path) -> None:
    """Give files and directories to the servant."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(SERVANT)
        for path in paths:
            os.chown(path, account.pw_uid, account.pw_gid)


def is_open_to_all(directory: Path) -> bool:
    """Whether every user may pass to this directory."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (directory, *directory.parents))


def open_the_way(directory: Path) -> None:
    """Let the servant pass to this directory of a run. Raises EnvironmentFailedError where that is not ours to give."""
    # Where the harness is root somebody else runs the server, and has to get to its directory: through the run's
    # scratch directory, which is closed otherwise. He can pass, but not list; what is secret in there is 0600 itself.
    if os.geteuid() != 0:
        return
    for folder in (directory, *directory.parents):
        is_end = (folder / MARKER).is_file()
        if folder == directory or is_end:
            folder.chmod(folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
        if is_end:
            break
    if not is_open_to_all(directory):
        closed = next(
            folder for folder in (*reversed(directory.parents), directory) if not folder.stat().st_mode & stat.S_IXOTH
        )
        raise EnvironmentFailedError(
            f"PostgreSQL refuses to run as root, and another user may not enter {closed}, where its data would be; "
            "set TMPDIR to a directory that every user may enter, or run as another user"
        )
