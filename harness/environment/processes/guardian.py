"""The guardian: a tiny process that outlives the harness by a moment and ends everything the run left behind.

Promises: once the harness is gone, however it went (SIGKILL included), every process that carries the run's label is
killed, its containers are removed, and so are the run's scratch directory and its port locks; then the guardian ends.
It touches nothing else: processes and containers by exact label, one directory by marker, lock files that nobody holds.

Does not: find a process that threw its environment away and whose parent is gone, and does not outlive SIGKILL of
itself (the next run's `ownership.reap_stale` covers that). Docker is asked only when the run said, by a file in its
scratch directory, that it has containers.

It is started as a file (`python -I guardian.py`), so it imports the standard library only (psutil where there is no
/proc), and `keeper` and `containers/docker_socket.py` by their paths. The harness imports the same functions
for its own sweep. How it learns of the end: the harness alone holds the write end of the pipe on standard input,
close-on-exec. End of file therefore also means that no child of the harness stands between fork and exec, where it
would not carry the label yet.
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
from types import ModuleType

OWNER_VARIABLE = "STORMPROOF_OWNER"
"""Carried by every process of a run: `<harness pid>:<harness start time>:<run id>`."""

OWNER_LABEL = "stormproof.owner"
"""On every container of a run, with the same value."""

GUARDIAN_VARIABLE = "STORMPROOF_GUARDIAN"
"""Carried by the guardian instead, with the same value, so that it does not kill itself."""

MARKER_PREFIX = ".stormproof-"
MARKER = f"{MARKER_PREFIX}scratch"
"""File in a scratch directory that says whose it is; nothing without it is ever removed with its content."""

CONTAINERS_MARKER = f"{MARKER_PREFIX}containers"
"""File in a scratch directory that says that the run has, or had, containers; it holds the path of Docker's socket."""

CREATING_PREFIX = f"{MARKER_PREFIX}creating-"
"""With the name of a container, a file beside it while Docker is asked for that one: it may come to be although its
harness is dead."""

SCAN_INTERVAL_S = 0.005
QUIET_SCANS = 3
"""So many scans in a row must find nothing: a process between fork and exec may be invisible to one of them."""

SWEEP_WITHIN_S = 30.0
CREATED_WITHIN_S = 3.0
"""Docker takes 0.1 s to create a container; so long is looked for one that was asked for by a harness that died."""

CREATED_INTERVAL_S = 0.05
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
    """SIGKILL every process that carries this owner label, and what it started; returns how many carried it.

    What it started may have overwritten its environment, where the label stood (PostgreSQL does, and whatever sets a
    title for `ps`), and as root it may belong to another user.
    """
    labelled = [pid for pid in own_processes() if labels_of(pid).get(OWNER_VARIABLE) == label]
    # Looked up before the kill: afterwards nobody knows whose they were. Who carries another label, or guards another
    # run, belongs to that run.
    descendants = _by_path("processes/keeper").descendants_of(*labelled) if labelled else ()
    below = [pid for pid in descendants if not labels_of(pid)]
    handles = [descriptor for pid in below if (descriptor := _opened(pid)) is not None]
    for pid in labelled:
        _kill_if_labelled(pid, label)
    for descriptor in handles:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    return len(labelled)


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


def remove_containers(label: str, scratch: Path) -> int:
    """Remove the run's containers, if it said that it has any; returns how many there were.

    Raises OSError when Docker could not be asked or would not remove them: the marker must stay then, for the next run.
    """
    try:
        path = Path((scratch / CONTAINERS_MARKER).read_text())
    except OSError:
        return 0
    module = _by_path("containers/docker_socket")
    docker = module.DockerSocket(path)
    try:
        found = set(docker.remove_labelled(OWNER_LABEL, label))
        asked_for = {path.name.removeprefix(CREATING_PREFIX) for path in scratch.glob(f"{CREATING_PREFIX}*")}
        deadline_s = time.monotonic() + CREATED_WITHIN_S
        while asked_for - found and time.monotonic() < deadline_s:
            time.sleep(CREATED_INTERVAL_S)
            found |= docker.remove_labelled(OWNER_LABEL, label)
    except module.DockerError as error:
        raise OSError(str(error)) from error
    return len(found)


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
        empty_scratch(directory)
        for child in _children(directory):
            if child.name.startswith(MARKER_PREFIX) and child.name != MARKER:
                child.unlink(missing_ok=True)
        if [child.name for child in _children(directory)] in ([MARKER], []):
            shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(SCAN_INTERVAL_S)


def empty_scratch(directory: Path) -> None:
    """Remove what a run's scratch directory holds, except the files that say whose it is."""
    if not (directory / MARKER).is_file():
        return
    for child in _children(directory):
        if child.name.startswith(MARKER_PREFIX):
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                child.unlink()


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
    # First what dies at once, then the containers, then whoever is left: the processes of a paused container are frozen
    # and die only when Docker thaws them.
    kill_labelled(label)
    try:
        remove_containers(label, scratch)
        finish = remove_scratch
    except OSError:
        finish = empty_scratch  # the markers stay: a later run asks Docker again
    is_swept = sweep(label)
    finish(scratch)
    remove_unheld_locks(locks)
    return 0 if is_swept and not scratch.exists() else 1


def _by_path(module: str) -> ModuleType:
    # Of this package, and only when it is needed: importing the package is what `python -I` rules out, and a run
    # without containers does not pay for http.client.
    import importlib.util  # noqa: PLC0415 - as above

    name = f"stormproof_{Path(module).name}"
    path = Path(__file__).parents[1] / f"{module}.py"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise OSError(f"{path} is not there any more")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded  # dataclasses look their module up there
        spec.loader.exec_module(loaded)
    return sys.modules[name]


def _opened(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


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
