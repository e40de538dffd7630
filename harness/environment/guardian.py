"""The guardian: a tiny process that outlives the harness by a moment and ends everything the run left behind.

Promises: once the harness is gone, however it went (SIGKILL included), every process that carries the run's label is
killed, the run's scratch directory is removed and so are its port locks; then the guardian ends. It touches nothing
else: processes by exact label, one directory by marker, lock files that nobody holds.

Does not: find a process that threw its environment away, and does not outlive SIGKILL of itself (the next run's
`ownership.reap_stale` covers that).

It is started as a file (`python -I guardian.py`), so it imports the standard library only (psutil where there is no
/proc). The harness imports the same functions for its own sweep. How it learns of the end: the harness alone holds the
write end of the pipe on standard input, close-on-exec. End of file therefore also means that no child of the harness
stands between fork and exec, where it would not carry the label yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

OWNER_VARIABLE = "STORMPROOF_OWNER"
"""Carried by every process of a run: `<harness pid>:<harness start time>:<run id>`."""

GUARDIAN_VARIABLE = "STORMPROOF_GUARDIAN"
"""Carried by the guardian instead, with the same value, so that it does not kill itself."""

MARKER = ".stormproof-scratch"
"""File in a scratch directory that says whose it is; nothing without it is ever removed with its content."""

SCAN_INTERVAL_S = 0.005
QUIET_SCANS = 3
"""So many scans in a row must find nothing: a process between fork and exec may be invisible to one of them."""

SWEEP_WITHIN_S = 30.0
END_OF_FILE_WITHIN_S = 0.5
REMOVE_ATTEMPTS = 20

_PROC = Path("/proc")


def has_proc() -> bool:
    """Whether processes can be read from /proc (Linux); everywhere else psutil answers."""
    return sys.platform == "linux" and (_PROC / "self" / "environ").exists()


def start_time_of(pid: int) -> str | None:
    """When this process started, as an opaque word that tells it from a later one with its pid; None when dead.

    On Linux the raw ticks since boot: psutil's wall-clock time moves when the clock is corrected.
    """
    if has_proc():
        try:
            fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        state, started_ticks = fields[0], fields[19]
        return None if state in (b"Z", b"X") else started_ticks.decode()
    import psutil  # noqa: PLC0415 - only where there is no /proc

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def labels_of(pid: int) -> dict[str, str]:
    """The owner and guardian variables this process was started with (children inherit them, forked or exec'ed)."""
    if has_proc():
        try:
            raw = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            return {}
        if b"STORMPROOF_" not in raw:
            return {}
        pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
        environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    else:
        import psutil  # noqa: PLC0415 - only where there is no /proc

        try:
            environment = psutil.Process(pid).environ()
        except (psutil.Error, OSError):
            return {}
    return {name: environment[name] for name in (OWNER_VARIABLE, GUARDIAN_VARIABLE) if name in environment}


def own_processes() -> Iterator[int]:
    """Pids of all processes of this user, except the caller."""
    me, uid = os.getpid(), os.geteuid()
    if not has_proc():
        import psutil  # noqa: PLC0415 - only where there is no /proc

        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != me and process.uids().effective == uid:
                    yield process.pid
        return
    with os.scandir(_PROC) as entries:
        for entry in entries:
            if entry.name.isdecimal() and int(entry.name) != me:
                with contextlib.suppress(OSError):
                    if entry.stat().st_uid == uid:
                        yield int(entry.name)


def kill_labelled(label: str) -> int:
    """SIGKILL every process that carries this owner label; returns how many were found alive."""
    found = 0
    for pid in own_processes():
        if labels_of(pid).get(OWNER_VARIABLE) == label:
            found += 1
            _kill_if_labelled(pid, label)
    return found


def sweep(label: str, *, within_s: float = SWEEP_WITHIN_S) -> bool:
    """Kill by label until several scans in a row find nobody; False when some would not die in time."""
    deadline_s = time.monotonic() + within_s
    quiet = 0
    while quiet < QUIET_SCANS:
        quiet = 0 if kill_labelled(label) else quiet + 1
        if time.monotonic() > deadline_s:
            return False
        if quiet < QUIET_SCANS:
            time.sleep(SCAN_INTERVAL_S)
    return True


def remove_scratch(directory: Path) -> None:
    """Remove a run's scratch directory; what does not carry the marker is removed only when it is empty."""
    try:
        state = directory.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        return
    if not (directory / MARKER).is_file():
        with contextlib.suppress(OSError):
            directory.rmdir()  # the harness died between making it and marking it
        return
    for _ in range(REMOVE_ATTEMPTS):
        # A process that is just dying may still add a file behind the walk, hence more than one attempt. The marker
        # goes last, so that an interrupted removal can be taken up by the next run.
        for child in _children(directory):
            if child.name == MARKER:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    child.unlink()
        if [child.name for child in _children(directory)] in ([MARKER], []):
            shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(SCAN_INTERVAL_S)


def remove_unheld_locks(directory: Path) -> None:
    """Unlink every port lock that nobody holds, and the directory when that leaves it empty.

    The lock is held while its name goes, so nobody can take it in between (`ports` looks at the name once more).
    """
    for path in _children(directory):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        os.close(descriptor)
    with contextlib.suppress(OSError):
        directory.rmdir()


def main(arguments: list[str]) -> int:
    """Wait for the harness to end or to say so, then sweep and remove.

    Arguments: owner label, scratch directory, directory of port locks, pid of the harness.
    """
    label, scratch, locks, harness_pid = arguments[0], Path(arguments[1]), Path(arguments[2]), int(arguments[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its work is done, not when a terminal closes
    _wait_for_end(harness_pid)
    is_swept = sweep(label)
    remove_scratch(scratch)
    remove_unheld_locks(locks)
    return 0 if is_swept and not scratch.exists() else 1


def _children(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _kill_if_labelled(pid: int, label: str) -> None:
    # A pidfd names the process itself, so a pid that was reused between the look and the kill hits nobody.
    with contextlib.suppress(OSError):
        if sys.platform != "linux":
            os.kill(pid, signal.SIGKILL)
            return
        descriptor = os.pidfd_open(pid)
        try:
            if labels_of(pid).get(OWNER_VARIABLE) == label:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _wait_for_end(harness_pid: int) -> None:
    # Two signs, whichever comes first: the pipe (a byte or end of file), and the death of the harness itself, because
    # a worker it forked without exec would keep the pipe open.
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    descriptor = -1
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(harness_pid)
            poller.register(descriptor, select.POLLIN)
    while True:
        ready = {number for number, _ in poller.poll()}
        if 0 in ready:
            return
        if descriptor in ready:
            poller.unregister(descriptor)
            poller.poll(END_OF_FILE_WITHIN_S * 1000)
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
