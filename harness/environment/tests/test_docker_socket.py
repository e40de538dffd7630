"""The engine's socket: each call has an answer or an error in time, whatever is at the other end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.environment.containers.docker_socket import DEFAULT_SOCKET, DockerError, DockerSocket, socket_path
from harness.environment.containers.docker_stream import open_stream, told_by
from harness.environment.containers.engine import find_engine
from harness.environment.tests.containers import unix_server
from harness.errors import EnvironmentFailedError

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def test_what_is_not_there_is_refused_with_the_engines_own_words(docker: DockerSocket) -> None:
    """The status tells a missing container from an engine that cannot be asked."""
    with pytest.raises(DockerError, match="No such container: nobody") as refused:
        await asyncio.to_thread(docker.state, "nobody")

    assert refused.value.status == 404


async def test_removing_what_is_gone_is_no_error(docker: DockerSocket) -> None:
    """The guardian and the harness may both be at it."""
    await asyncio.to_thread(docker.remove, "nobody")

    assert await asyncio.to_thread(docker.remove_labelled, "stormproof.test", "nobody") == frozenset()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "did not answer GET /_ping within 0.2 s"),
        (b"", "closed connection without response"),
        (b"SSH-2.0-OpenSSH\r\n", "broke off its answer"),
        (JSON + b"Content-Length: 9\r\n\r\n{}", "broke off its answer"),
        (JSON + b"Content-Length: 4\r\n\r\nnone", "with what is not JSON"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "status 500"),
        (b'HTTP/1.1 500 Oh\r\nContent-Length: 20\r\n\r\n{"message":"no room"}', "no room"),
    ],
    ids=["hangs", "closes", "another-protocol", "half-a-body", "not-json", "no-words", "words"],
)
async def test_whatever_is_at_the_other_end_the_call_ends_in_time_with_an_error(
    tmp_path: Path, answer: bytes | None, words: str
) -> None:
    """An engine that hangs must not hang a run, nor its guardian."""
    path = tmp_path / "docker.sock"
    began_s = time.monotonic()
    async with unix_server(path, answer):
        with pytest.raises(DockerError, match=words):
            await asyncio.to_thread(DockerSocket(path, timeout_s=0.2).ping)

    assert time.monotonic() - began_s < 2


def test_nothing_at_the_socket_is_an_error_that_names_it(tmp_path: Path) -> None:
    """The commonest case: Docker is not running."""
    with pytest.raises(DockerError, match=f"unix://{tmp_path}/none cannot be asked: No such file"):
        DockerSocket(tmp_path / "none").ping()


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:2376", "ssh://build-host", "nonsense"])
async def test_an_engine_of_another_host_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers share this host's network and directories, which another host has not got."""
    monkeypatch.setenv("DOCKER_HOST", url)

    with pytest.raises(EnvironmentFailedError, match=f"DOCKER_HOST={url} is not an engine on this host"):
        await find_engine()


def test_docker_host_chooses_the_socket() -> None:
    """As for every client of Docker."""
    assert socket_path({}) == DEFAULT_SOCKET
    assert socket_path({"DOCKER_HOST": ""}) == DEFAULT_SOCKET
    assert socket_path({"DOCKER_HOST": "unix:///run/other.sock"}) == Path("/run/other.sock")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (b'{"OSType":"windows"}', "it runs windows containers"),
        (b'{"OSType":"linux","OperatingSystem":"Docker Desktop"}', "in a virtual machine"),
        (b'{"OSType":"linux","SecurityOptions":["name=seccomp","name=rootless"]}', "it is rootless"),
    ],
    ids=["windows", "desktop", "rootless"],
)
async def test_an_engine_whose_network_is_not_this_hosts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: bytes, words: str
) -> None:
    """A broker on its loopback would be on somebody else's loopback."""
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    async with unix_server(path, JSON + b"Content-Length: %d\r\n\r\n" % len(engine) + engine):
        with pytest.raises(EnvironmentFailedError, match=words):
            await find_engine()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'HTTP/1.0 404 No\r\n\r\n{"message":"no such image"}', "no such image"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"error":"no space left on device"}\r\n', "no space left on device"),
        (b"HTTP/1.0 200 OK\r\n\r\nnonsense\r\n", "what is not JSON"),
        (b"", "broke off POST /build"),
    ],
    ids=["refused", "told", "not-json", "closes"],
)
async def test_what_goes_wrong_in_a_long_call_is_its_error(tmp_path: Path, answer: bytes, words: str) -> None:
    """A build answers 200 before it begins, and tells its error later."""
    path = tmp_path / "docker.sock"

    async def build() -> None:
        async with open_stream(path, "POST", "/build", {}) as reader:
            async for _told in told_by(reader):
                pass

    async with unix_server(path, answer):
        with pytest.raises(DockerError, match=words):
            await build()


def test_a_run_without_containers_pays_nothing_for_docker(tmp_path: Path) -> None:
    """Neither the client nor HTTP is imported, and no socket is looked at: DOCKER_HOST leads nowhere."""
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from harness.environment.processes.ownership import Ownership, reap_stale\n"
        "reap_stale(temporary=Path(sys.argv[1]))\n"
        "asyncio.run(Ownership.take('plain', temporary=Path(sys.argv[1])).release())\n"
        "print([name for name in sys.modules if 'docker' in name or name in ('http.client', 'testcontainers')])\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DOCKER_HOST": "tcp://192.0.2.1:1"},
    )

    assert (finished.stdout, finished.stderr) == ("[]\n", "")
