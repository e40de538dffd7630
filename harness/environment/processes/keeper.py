"""The keeper: runs one server as another user, and takes everything of it along when it ends.

Promises: SIGTERM to the keeper is the server's *fast* shutdown (SIGINT to PostgreSQL; its own SIGTERM waits for every
client to leave); SIGCONT reaches everything the server started; when the server ends so do the processes it left, and
the keeper ends as it did; when the keeper is killed the kernel kills the server.

Why it exists, all seen on PostgreSQL 15 and 18: it refuses to run as root; its children sit in sessions of their own,
where no signal to the group reaches them, and overwrite their environment, where the owner label stood; a server that
is killed leaves a System V segment of 56 bytes until the machine is started again, of which there can be 4,096.

It is started as a file (`python -I -S keeper.py USER POSTMASTER_PID_FILE COMMAND...`), so it imports the standard
library only. `-` for USER is whoever calls. Outside Linux nothing dies with a killed keeper but what carries the label.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

OURSELVES = "-"
SEGMENT_LINE = 6
SEGMENT_FIRST_LOOK_S = 0.02
SEGMENT_LOOK_S = 1.0
ORPHAN_LOOK_S = 0.02

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IPC_RMID = 0
_HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGCONT,
    signal.SIGCHLD,
    signal.SIGALRM,
)


def descendants_of(*roots: int) -> list[int]:
    """Every process below these, whoever it belongs to, parents before children. Linux; elsewhere none."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = list(roots)
    for pid in found:
        found += children.get(pid, ())
    return found[len(roots) :]


def main(arguments: list[str]) -> int:
    """Run the command as the user until it ends; see the top of this module."""
    user, pid_file, command = arguments[0], Path(arguments[1]), arguments[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # from here on they wait until `_keep` asks for them
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    _remove_if_left_by_a_zombie(pid_file)
    server = os.fork()
    if server == 0:
        _become(user, keeper, command)
    status = _keep(server, user, pid_file)
    _end_orphans()
    if os.WIFSIGNALED(status):
        # So that whoever watches the keeper sees how the server ended.
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        os.kill(keeper, os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1


def _become(user: str, keeper: int, command: list[str]) -> NoReturn:
    try:
        _switch_to(user)
        # After the switch, which clears it. The kernel sends it when the thread that forked ends; it is the only one.
        _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)  # the keeper died before it was asked for
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        os.execv(command[0], command)  # noqa: S606 - our own command, no shell wanted
    except (OSError, KeyError) as error:
        os.write(2, f"keeper: cannot run {command[0]} as {user}: {error}\n".encode())
    os._exit(127)


def _switch_to(user: str) -> None:
    if user == OURSELVES:
        return
    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _keep(server: int, user: str, pid_file: Path) -> int:
    # Returns the server's wait status.
    forgotten = -1
    signal.setitimer(signal.ITIMER_REAL, SEGMENT_FIRST_LOOK_S, SEGMENT_FIRST_LOOK_S)
    while True:
        number = signal.sigwait(_HANDLED)
        if number == signal.SIGCHLD:
            for pid, status in _reaped():
                if pid == server:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    return status
        elif number == signal.SIGALRM:
            segment = _segment_of(pid_file)
            if segment is not None and segment != forgotten:
                forgotten = segment
                _forget(segment, user)
                signal.setitimer(signal.ITIMER_REAL, SEGMENT_LOOK_S, SEGMENT_LOOK_S)
        elif number == signal.SIGCONT:
            for pid in descendants_of(os.getpid()):
                _send(pid, signal.SIGCONT)
        else:
            _send(server, signal.SIGQUIT if number == signal.SIGQUIT else signal.SIGINT)


def _end_orphans() -> None:
    # As their subreaper the keeper is the parent of whatever the server left. Killed ones turn into children to reap.
    signal.setitimer(signal.ITIMER_REAL, ORPHAN_LOOK_S, ORPHAN_LOOK_S)
    while left := descendants_of(os.getpid()):
        for pid in left:
            _send(pid, signal.SIGKILL)
        signal.sigwait((signal.SIGCHLD, signal.SIGALRM))
        for _ in _reaped():
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)


def _reaped() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _remove_if_left_by_a_zombie(pid_file: Path) -> None:
    # A server that was killed together with its keeper is dead, but has its pid until its new parent asks for it, which
    # in a container without an init is never. The next server would take it for alive and refuse to start. What the
    # file protects is the data, from processes that still use it; they would hold the segment.
    try:
        pid = int(pid_file.read_text().split()[0])
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        segments = [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
        if state == b"Z" and str(_segment_of(pid_file)) not in segments:
            pid_file.unlink()
    except (OSError, ValueError, IndexError):
        return


def _segment_of(pid_file: Path) -> int | None:
    # The seventh line of postmaster.pid holds the key and the id of the segment. A crash of a backend makes a new one.
    try:
        return int(pid_file.read_text().splitlines()[SEGMENT_LINE].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _forget(segment: int, user: str) -> None:
    # Marks it: it goes when the last process that uses it ends, however. Only its owner may do that.
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError, KeyError, AttributeError):
            _switch_to(user)
            ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)
        os._exit(0)
    os.waitpid(child, 0)


def _parents() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                    yield int(entry.name), int(fields[1])


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
