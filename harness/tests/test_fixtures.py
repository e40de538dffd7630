"""The fixtures in somebody else's project: each test finds parts as new, and nothing outlives the session."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tests.conftest import PLAIN, Project


def test_a_test_finds_nothing_of_the_test_before(project: Project) -> None:
    """Streams and connections of the broker, proxies and toxics, tables and databases, spans: all gone."""
    result = project.test(
        """
        import asyncio, asyncpg, nats, pytest, urllib.request
        from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

        class Left:
            client = database = None

        @pytest.mark.asyncio(loop_scope="module")
        @pytest.mark.parametrize("again", [False, True])
        async def test_broker(nats_server, again):
            if again:
                async with asyncio.timeout(10):
                    while not Left.client.is_closed:  # whoever was there before was cut off
                        await asyncio.sleep(0.01)
            Left.client = await nats.connect(nats_server.url_with_credentials, allow_reconnect=False)
            assert await Left.client.jetstream().streams_info() == []
            await Left.client.jetstream().add_stream(name="S", subjects=["s"])
            if again:
                await Left.client.close()

        @pytest.mark.parametrize("again", [False, True])
        def test_proxies(toxiproxy, nats_server, again):
            assert toxiproxy.proxies() == {}
            toxiproxy.in_front_of(nats_server).add_toxic(type="latency", attributes={"latency": 1})

        @pytest.mark.parametrize("again", [False, True])
        async def test_database(postgres, again):
            connection = await asyncpg.connect(postgres.url)
            await connection.execute("CREATE TABLE orders (id text)")
            assert postgres.database != Left.database
            Left.database = postgres.database
            databases = [row[0] for row in await connection.fetch("SELECT datname FROM pg_database")]
            assert [name for name in databases if name.startswith(("test_", "other"))] == [postgres.database]
            postgres.create_database("other")
            await connection.close()

        @pytest.mark.parametrize("again", [False, True])
        def test_spans(otlp, again):
            assert otlp.spans == ()
            span = Span(trace_id=bytes([1] * 16), span_id=bytes([1] * 8))
            body = TracesData(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[span])])])
            url, headers = f"{otlp.url}/v1/traces", {"Content-Type": "application/x-protobuf"}
            urllib.request.urlopen(urllib.request.Request(url, body.SerializeToString(), headers), timeout=5).close()
            assert len(otlp.wait_for(lambda spans: spans)) == 1
        """
    )

    result.assert_outcomes(passed=8)


def test_a_part_that_a_test_has_ended_or_frozen_serves_the_next(project: Project) -> None:
    """The one server is the same, by its address, and works."""
    result = project.test(
        """
        import pytest

        SEEN = {}

        @pytest.mark.parametrize("harm", ["kill", "pause", "stop", None])
        @pytest.mark.parametrize("part", ["nats_server", "postgres"])
        def test_harm(part, harm, request):
            server = request.getfixturevalue(part)
            assert server.is_running
            assert SEEN.setdefault(part, server.address) == server.address
            if harm:
                getattr(server, harm)()

        async def test_after_all(nats_server, jetstream):
            await jetstream.add_stream(name="S", subjects=["s"])
        """
    )

    result.assert_outcomes(passed=9)


def test_fresh_parts_are_others_and_end_with_the_test(project: Project) -> None:
    """With the marker, and from the factory."""
    result = project.test(
        """
        import pathlib, pytest, socket

        ADDRESSES = []

        def test_shared(nats_server):
            ADDRESSES.append(nats_server.address)

        @pytest.mark.stormproof(fresh=True)
        def test_fresh(nats_server):
            assert nats_server.address not in ADDRESSES
            ADDRESSES.append(nats_server.address)

        def test_more(nats_server_factory):
            ADDRESSES.extend([nats_server_factory().address, nats_server_factory().address])
            assert len(set(ADDRESSES)) == 4

        def test_only_the_shared_one_is_left(nats_server):
            assert nats_server.address == ADDRESSES[0]
            for address in ADDRESSES[1:]:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", int(address.split(":")[1])), timeout=5)

        @pytest.mark.stormproof(frehs=True)
        def test_misspelt(nats_server):
            pass
        """
    )

    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.stormproof takes fresh=True and nothing else*"])


@pytest.mark.parametrize("backend", ["container", "cluster", "cluster-container"])
def test_the_backend_says_where_parts_run(backend: str, project: Project) -> None:
    """One test, unchanged, on containers and on three servers."""
    result = project.test(
        """
        async def test_a_stream_with_a_replica_on_each_server(jetstream, toxiproxy, request):
            is_cluster = "cluster" in request.config.getoption("--backend")
            await jetstream.add_stream(name="S", subjects=["s"], num_replicas=3 if is_cluster else 1)
            await jetstream.publish("s", b"")
            assert bool(toxiproxy.proxies()) == is_cluster  # those of the routes

        def test_one_server_is_one_server(nats_server):
            nats_server.kill()
            nats_server.start()
        """,
        "--backend",
        backend,
    )

    result.assert_outcomes(passed=2)
    assert project.leftovers() == []


def test_an_absent_part_skips_by_name_and_fails_where_it_is_required(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No engine, no container; what does not need one goes on."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    tests = """
        def test_broker(nats_server):
            pass

        def test_spans(otlp):
            assert otlp.spans == ()
    """
    project.pytester.makepyfile(tests)

    skipped = project.run("--backend", "container")
    failed = project.run("--backend", "container", "--require-backends")

    skipped.assert_outcomes(passed=1, skipped=1)
    skipped.stdout.fnmatch_lines(["SKIPPED*nats_server cannot be had here: *Docker*"])
    failed.assert_outcomes(passed=1, errors=1)
    failed.stdout.fnmatch_lines(["*nats_server is required and cannot be had*"])


def test_a_failure_shows_what_the_parts_said(project: Project) -> None:
    """The end of the log, and no password."""
    result = project.test(
        """
        def test_fails(nats_server):
            assert nats_server.monitoring_url == "this one", "and it is not"
        """
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the end of what nats_server says*", "*Server is ready*"])


def test_a_version_that_is_none_is_refused_at_once(project: Project) -> None:
    """Before any test has run."""
    result = project.run("--nats-version", "banana")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--nats-version*banana*"])


def test_workers_of_xdist_never_meet_and_leave_nothing(project: Project) -> None:
    """Two sessions, two servers, the same stream in both."""
    result = project.test(
        """
        import os, pathlib, pytest

        @pytest.mark.parametrize("number", range(8))
        async def test_stream(jetstream, nats_server, number, request):
            assert await jetstream.streams_info() == []
            await jetstream.add_stream(name="S", subjects=["s"])
            worker = os.environ["PYTEST_XDIST_WORKER"]
            (request.config.rootpath / f"{worker}.address").write_text(nats_server.address)
        """,
        *("-n", "2"),
    )

    result.assert_outcomes(passed=8)
    addresses = [path.read_text() for path in project.pytester.path.glob("*.address")]
    assert len(set(addresses)) == len(addresses) == 2
    assert project.leftovers() == []


def test_a_worker_that_is_killed_leaves_nothing(project: Project) -> None:
    """SIGKILL, with everything running."""
    result = project.test(
        """
        import os, pathlib, signal

        def test_dies(nats_server, nats_cluster, toxiproxy, postgres, otlp):
            pathlib.Path("parts-were-there").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        *("-n", "1", "--max-worker-restart", "0"),
    )

    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running*test_dies*"])
    assert (project.pytester.path / "parts-were-there").exists()
    assert project.leftovers() == []


def test_keep_running_shows_the_addresses_and_waits_for_an_interrupt(project: Project) -> None:
    """On a terminal: the part answers while somebody looks, and is gone after Ctrl-C; no other test runs."""
    project.pytester.makepyfile(
        """
        import pathlib

        def test_fails(nats_server):
            pathlib.Path("password").write_text(nats_server.password)
            assert nats_server.url == "this one"

        def test_next(nats_server):
            pathlib.Path("next").touch()
        """
    )
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "pytest", *PLAIN, "--keep-running"]
    child = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, cwd=project.pytester.path)
    os.close(end)
    said = read_until(terminal, "Ctrl-C ends it.")
    login = re.search(r"nats login +(\S+)", said)
    assert login is not None, said
    variables = Path(login[1]).read_text()
    os.kill(child.pid, signal.SIGINT)
    said += read_until(terminal, " in ")

    assert child.wait(30) == pytest.ExitCode.TESTS_FAILED
    os.close(terminal)
    password = (project.pytester.path / "password").read_text()
    assert password in variables
    assert password not in said
    assert re.search(r"nats +nats://127\.0\.0\.1:\d+", said)
    assert not (project.pytester.path / "next").exists()
    assert project.leftovers() == []


@pytest.mark.parametrize(
    ("options", "why"),
    [((), "needs a terminal"), (("-n", "2"), "does not go with pytest-xdist")],
    ids=["pipe", "xdist"],
)
def test_keep_running_is_refused_where_nobody_could_look(options: tuple[str, ...], why: str, project: Project) -> None:
    """A CI job would hang for ever."""
    result = project.run("--keep-running", *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--keep-running {why}*"])


def read_until(terminal: int, words: str) -> str:
    """What a terminal shows, until these words come."""
    shown = ""
    while words not in shown:
        try:
            shown += os.read(terminal, 4096).decode()
        except OSError:
            pytest.fail(f"the terminal was closed before {words!r}:\n{shown}")
    return shown
