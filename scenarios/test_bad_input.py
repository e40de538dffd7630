"""What a host can do to a run: it ends with a clear sentence and its exit code, leaves nothing, keeps what is known.

The command is run as people run it, in a temporary directory of its own, so that everything that is left of it is seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from harness.benchmarks.killing import wait_until
from harness.benchmarks.leftovers import Left, left_of, suspect
from harness.environment.containers.docker_socket import HOST_VARIABLE, DockerError, DockerSocket
from harness.environment.containers.image_build import build_image, nats_recipe, toxiproxy_recipe
from harness.environment.nats.server import find_nats_server
from harness.environment.processes.guardian import OWNER_LABEL, OWNER_VARIABLE, labels_of, start_time_of
from scenarios.command import start_stormproof

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

WITHIN_S = 90.0
OPEN_TO_ALL = 0o711
PARTITION = "payments-partition"

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended. said: its standard error. run: its run directory, None when it made none."""

    exit_code: int
    said: str
    run: Path | None
    left: Left

    @property
    def sentence(self) -> str:
        """What it says of itself at the end, progress left out."""
        return "\n".join(line for line in self.said.splitlines() if not re.match(r" *\d+\.\d\d s  ", line))

    def must_say(self, *words: str, exit_code: int) -> None:
        """Raise unless it ended so, with one sentence that holds these words, and left nothing."""
        assert self.exit_code == exit_code, self.said
        assert self.sentence.startswith("stormproof: "), self.said
        assert "Traceback" not in self.said
        for word in words:
            assert word in self.sentence, self.said
        assert self.left == Left(), self.left.words()

    def must_keep(self, *names: str) -> None:
        """Raise unless these files are in the run directory, and hold something."""
        assert self.run is not None, self.said
        for name in names:
            assert (self.run / name).stat().st_size > 0, name


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of the commands of one test."""
    directory = Path(tempfile.mkdtemp(prefix="bad-input-"))
    directory.chmod(OPEN_TO_ALL)
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where the runs of one test go; not made yet."""
    return tmp_path / "runs"


def carry_out(
    *arguments: str,
    runs: Path,
    temporary: Path,
    moment: str | None = None,
    harm: Callable[[int], None] = lambda _pid: None,
) -> Ended:
    """Run a command to its end; harm is done, once, when its progress says the moment, and is told its pid."""
    with start_stormproof(*arguments, "--runs-dir", str(runs)) as process:
        try:
            label = f"{process.pid}:{start_time_of(process.pid)}:"
            said = []
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if moment is not None and moment in line:
                    moment = None
                    harm(process.pid)
            assert moment is None, f"it never said {moment!r}: {''.join(said)}"
            process.wait(WITHIN_S)
        finally:
            process.kill()
    looked_at = suspect(process.pid, label, temporary)
    made = [path for path in runs.iterdir() if not path.is_symlink()] if runs.is_dir() else []
    return Ended(
        exit_code=process.returncode,
        said="".join(said),
        run=max(made, key=lambda path: path.name, default=None),
        left=left_of(looked_at),
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nats-version", "banana"], "'banana' is no version of nats-server; write it as 2.12.4"),
        (["--nats-version", "2.12.4.1"], "is no version of nats-server"),
        (["--backend", "moon"], "invalid choice: 'moon'"),
        (["--backend", "external"], "needs --nats-url and --toxiproxy-url"),
        (["--backend", "external", "--nats-url", "moon", "--toxiproxy-url", "http://127.0.0.1:1"], "is not nats://"),
        (["--nats-url", "nats://127.0.0.1:1"], "add --backend external"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], says: str, runs: Path, temporary: Path
) -> None:
    """Wrong use: 64, and not even a run directory."""
    ended = carry_out("run", PARTITION, *arguments, runs=runs, temporary=temporary)

    ended.must_say(says, exit_code=64)
    assert ended.run is None


def test_a_version_that_was_never_published_is_told_with_those_that_were(runs: Path, temporary: Path) -> None:
    """It might have been, so it is not wrong use; without an index to ask, that is what is said."""
    ended = carry_out("run", PARTITION, "--nats-version", "9.99.9", runs=runs, temporary=temporary)

    ended.must_say("nats-server 9.99.9", exit_code=3)
    assert re.search(r"never published .* near it are \d|the package index cannot be asked", ended.sentence), ended.said
    ended.must_keep("plan.json")


@pytest.mark.parametrize("roles", [("orders", "payments")])
def test_one_port_for_two_roles_is_refused(roles: tuple[str, str], runs: Path, temporary: Path) -> None:
    """It is free when it is asked for, and taken a moment later, by ourselves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    listen = [word for role in roles for word in ("--listen", f"{role}={address}")]

    carry_out("up", *listen, runs=runs, temporary=temporary).must_say(address, "another port", exit_code=3)


def test_a_port_that_is_taken_while_everything_starts_is_told_by_whoever_wanted_it(runs: Path, temporary: Path) -> None:
    """It was free when the command looked: the process that cannot listen says so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    taken: list[socket.socket] = []
    try:
        ended = carry_out(
            "up",
            "--listen",
            f"orders=127.0.0.1:{address[1]}",
            runs=runs,
            temporary=temporary,
            moment="up, seed",
            harm=lambda _pid: taken.append(socket.create_server(address)),
        )
    finally:
        for each in taken:
            each.close()

    ended.must_say(f"127.0.0.1:{address[1]}", exit_code=3)


def test_an_external_broker_that_nobody_runs_is_told_within_seconds(runs: Path, temporary: Path) -> None:
    """Nobody listens at port 1."""
    urls = ("--nats-url", "nats://127.0.0.1:1", "--toxiproxy-url", "http://127.0.0.1:1")

    ended = carry_out("run", PARTITION, "--backend", "external", *urls, runs=runs, temporary=temporary)

    ended.must_say("127.0.0.1:1", "look whether it runs", exit_code=3)
    ended.must_keep("plan.json")


def test_two_runs_of_one_seed_in_one_directory_do_not_meet(runs: Path, temporary: Path) -> None:
    """Both hold, each in a run directory of its own, and `latest` is one of them."""
    words = ("run", PARTITION, "--seed", "7", "--runs-dir", str(runs))
    both = [start_stormproof(*words) for _ in range(2)]
    labels = [f"{process.pid}:{start_time_of(process.pid)}:" for process in both]
    try:
        for process in both:
            _stdout, said = process.communicate(timeout=WITHIN_S)
            assert process.returncode == 0, said
    finally:
        for process in both:
            process.kill()

    first, second = (path for path in runs.iterdir() if not path.is_symlink())
    for run in (first, second):
        assert (run / "verdict.json").is_file()
    assert (runs / "latest").resolve() in (first, second)
    for process, label in zip(both, labels, strict=True):
        assert left_of(suspect(process.pid, label, temporary)) == Left()


@pytest.mark.parametrize("program", ["toxiproxy-server", "nats-server"])
def test_a_part_that_hangs_in_mid_run_is_told_by_name(program: str, runs: Path, temporary: Path) -> None:
    """SIGSTOP stands for it: what was asked meanwhile cannot be judged, and stays on record."""
    ended = carry_out(
        "run", PARTITION, runs=runs, temporary=temporary, moment="in force", harm=lambda pid: pause(program, pid)
    )

    ended.must_say(program.removesuffix("-server"), "does not answer", exit_code=3)
    ended.must_keep("plan.json", "operations.jsonl", "logs/payments.log")


def pause(program: str, harness: int) -> None:
    """SIGSTOP a program that this harness owns."""
    (ours,) = (
        process
        for process in psutil.process_iter()
        if labels_of(process.pid).get(OWNER_VARIABLE, "").startswith(f"{harness}:") and process.name() == program
    )
    ours.suspend()


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A file system of this size alone."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("a small file system can be mounted by root alone")
    directory.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(  # noqa: S603 - the system's own
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([umount, str(directory)], check=True)  # noqa: S603 - as above


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ("64k", ("plan.json",)),
        ("5m", ("plan.json", "operations.jsonl", "spans.otlp", "logs/payments.log")),
    ],
    ids=["before-the-first-order", "when-the-evidence-is-written"],
)
def test_a_full_disk_in_the_runs_directory_is_told(
    size: str, kept: tuple[str, ...], runs: Path, temporary: Path
) -> None:
    """What fitted is kept, and nothing that does not say so is taken for evidence."""
    with small_disk(runs, size):
        ended = carry_out("run", PARTITION, "--seed", "7", runs=runs, temporary=temporary)

        ended.must_say(exit_code=3)
        assert re.search(r"No space left on device|is full", ended.sentence), ended.said
        ended.must_keep(*kept)
        assert ended.run is not None
        assert not (ended.run / "evidence.duckdb").exists()


def test_a_full_temporary_directory_is_told(runs: Path, temporary: Path) -> None:
    """The broker's store and the databases lie there: what could not be written there was not dropped by the system."""
    with small_disk(temporary, "256k"):
        ended = carry_out("run", PARTITION, "--seed", "7", runs=runs, temporary=temporary)

    ended.must_say(str(temporary), "full", exit_code=3)
    ended.must_keep("plan.json", "operations.jsonl")


@pytest.mark.parametrize(
    ("variable", "says"),
    [("unix:///nowhere/docker.sock", "No such file or directory"), ("tcp://127.0.0.1:1", "not an engine on this host")],
)
def test_no_docker_is_told_with_the_backend_that_needs_none(
    variable: str, says: str, runs: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers were asked for, and there is no engine."""
    monkeypatch.setenv(HOST_VARIABLE, variable)

    ended = carry_out("run", PARTITION, "--backend", "container", runs=runs, temporary=temporary)

    ended.must_say(says, "--backend embedded", exit_code=3)


def test_a_docker_that_hangs_from_the_beginning_is_told(
    runs: Path, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections, and never answers."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        monkeypatch.setenv(HOST_VARIABLE, f"unix://{path}")
        ended = carry_out("run", PARTITION, "--backend", "container", runs=runs, temporary=temporary)

    ended.must_say(str(path), "did not answer", exit_code=3)


@dataclass(slots=True, kw_only=True)
class OwnDocker:
    """A Docker engine of this test alone, with directories of its own."""

    place: Path
    daemon: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> DockerSocket:
        """Where it listens."""
        return DockerSocket(self.place / "docker.sock")

    def start(self) -> None:
        """Start it, on what it left, and wait until it answers."""
        dockerd = shutil.which("dockerd")
        assert dockerd is not None
        for pid in (self.place / "pid", self.place / "exec" / "containerd" / "containerd.pid"):
            pid.unlink(missing_ok=True)  # a zombie that nobody has buried yet would pass for one that lives
        words = {"host": self.socket.url, "pidfile": self.place / "pid", "bridge": "none", "iptables": "false"}
        roots = {"data-root": self.place / "data", "exec-root": self.place / "exec"}
        with (self.place / "log").open("ab") as log:
            self.daemon = subprocess.Popen(  # noqa: S603 - the system's own
                [dockerd, *(f"--{name}={value}" for name, value in {**words, **roots}.items())],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, WITHIN_S, f"dockerd, whose log is {self.place / 'log'}")

    def kill(self) -> None:
        """SIGKILL it, and its containerd, which it is told to take along; containers go on without them."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self._end("containerd")

    def remove(self) -> None:
        """End everything of it."""
        self.kill()
        self._end()
        umount = shutil.which("umount")
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
        for mounted in sorted((each for each in mounts if each.startswith(str(self.place))), reverse=True):
            subprocess.run([str(umount), "-l", mounted], check=False, capture_output=True)  # noqa: S603 - as above
        shutil.rmtree(self.place, ignore_errors=True)

    def _end(self, *names: str) -> None:
        # Whatever names its directory on its command line is of this engine.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.place) in " ".join(process.cmdline()) and process.name() in (names or (process.name(),)):
                    process.kill()
                    process.wait(WITHIN_S)

    def _answers(self) -> bool:
        try:
            self.socket.ping()
        except DockerError:
            return False
        return True


@pytest.fixture
async def own_docker(toxiproxy_binary: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OwnDocker]:
    """An engine that may be killed, with the images of a run."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("only root can start a Docker engine of its own, where dockerd is on PATH")
    docker = OwnDocker(place=Path(tempfile.mkdtemp(prefix="own-docker-", dir="/tmp")))
    try:
        docker.start()
        await build_image(docker.socket, await nats_recipe(find_nats_server()))
        await build_image(docker.socket, await toxiproxy_recipe(toxiproxy_binary))
        monkeypatch.setenv(HOST_VARIABLE, docker.socket.url)
        yield docker
    finally:
        docker.remove()


@pytest.mark.parametrize(
    ("moment", "kept"),
    [("starting nats", ("plan.json",)), ("in force", ("plan.json", "operations.jsonl", "logs/nats.log"))],
    ids=["while-it-starts", "while-a-fault-is-in-force"],
)
def test_docker_stopped_midway_is_told_and_the_next_run_removes_what_docker_kept(
    moment: str, kept: tuple[str, ...], own_docker: OwnDocker, runs: Path, temporary: Path
) -> None:
    """The processes go without Docker; containers, of which only Docker knows, go when it is there again."""
    words = ("run", PARTITION, "--backend", "container")
    ended = carry_out(*words, runs=runs, temporary=temporary, moment=moment, harm=lambda _pid: own_docker.kill())

    assert (ended.exit_code, "Traceback" in ended.said) == (3, False), ended.said
    assert re.search(r"Docker was stopped midway|no Docker engine answers|cannot be asked", ended.sentence), ended.said
    assert (ended.left.processes, ended.left.ports) == ((), ())
    ended.must_keep(*kept)

    own_docker.start()
    following = carry_out(
        "up",
        "--backend",
        "container",
        runs=runs,
        temporary=temporary,
        moment="environment ready",
        harm=lambda pid: os.kill(pid, signal.SIGTERM),
    )

    assert following.exit_code in (0, 2), following.said  # it may not have come to waiting for the signal yet
    assert following.left == Left()
    assert own_docker.socket.containers(OWNER_LABEL) == ()
    assert list(temporary.iterdir()) == []
