"""An environment, embedded: real broker, real proxies, small processes; up fast, and gone whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest

from harness.environment.backend import Environment
from harness.environment.choice import BackendChoice
from harness.environment.opening import open_environment
from harness.environment.ports import LOOPBACK
from harness.environment.probes import probe_nats
from harness.environment.running import RunningEnvironment
from harness.environment.tests.small_system import (
    owned_by,
    scratch_directories,
    small_process,
    small_topology,
    wait_until,
)
from harness.environment.topology import ProcessSpec, Topology
from harness.environment.toxiproxy.toxics import Direction, TimeoutToxic
from harness.errors import EnvironmentFailedError, UsageError
from harness.records import ProcessEvent

pytestmark = pytest.mark.usefixtures("toxiproxy_binary", "nats_binary", "temporary")


class Start(Protocol):
    """Starts a topology with this test's directories."""

    def __call__(
        self,
        topology: Topology,
        *,
        listen: Mapping[str, str] | None = None,
        start_wrapper: Callable[[ProcessSpec], tuple[str, ...]] = ...,
        on_event: Callable[[ProcessEvent], None] = ...,
    ) -> AbstractAsyncContextManager[RunningEnvironment]:
        """Give the context manager of the environment."""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a topology in this test's run directory."""

    def started(
        topology: Topology,
        *,
        listen: Mapping[str, str] | None = None,
        start_wrapper: Callable[[ProcessSpec], tuple[str, ...]] = lambda spec: spec.argv,
        on_event: Callable[[ProcessEvent], None] = lambda _event: None,
    ) -> AbstractAsyncContextManager[RunningEnvironment]:
        return open_environment(
            BackendChoice(),
            topology,
            run_id="test",
            run_directory=tmp_path / "run",
            seed=7,
            otlp_url="http://127.0.0.1:4318",
            listen=listen,
            start_wrapper=start_wrapper,
            on_event=on_event,
        )

    return started


def nothing_is_left(temporary: Path) -> bool:
    """No process of this test, no scratch directory."""
    return owned_by(os.getpid()) == [] and scratch_directories(temporary) == []


async def test_everything_answers_inside_and_nothing_is_left_after(start: Start, temporary: Path) -> None:
    """The whole promise."""
    async with start(small_topology()) as environment:
        probes = {link: await environment.probe(link) for link in environment.links}
        assert await probe_nats(environment.address("nats"), access=environment.broker) is None
        assert environment.scratch_directory.exists()

    assert probes == {"orders->nats": None, "payments->nats": None, "orders->payments": None}
    assert nothing_is_left(temporary)
    assert environment.supervisor.unexpected_exits == ()
    stopped = [event.process for event in environment.supervisor.events if event.event == "stopping"]
    assert stopped == ["orders", "payments", "nats", "toxiproxy"]


async def test_it_implements_what_every_backend_must(start: Start) -> None:
    """The callers know the interface only."""

    async def use(environment: Environment) -> str:
        return environment.address("orders")

    async with start(small_topology()) as environment:
        assert (await use(environment)).startswith(LOOPBACK)
        assert environment.wiring.seed == 7
        assert environment.wiring.via("orders->nats") == environment.links["orders->nats"].listen
        assert environment.spool_directory.is_dir()
        assert environment.toxiproxy_url == f"http://{environment.address('toxiproxy')}"
        assert environment.labelled({"A": "b"})["STORMPROOF_OWNER"].startswith(f"{os.getpid()}:")


async def test_parts_start_in_parallel(start: Start) -> None:
    """The second process is started before the first is ready."""
    async with start(small_topology()) as environment:
        events = [(event.process, event.event) for event in environment.supervisor.events]

    assert events.index(("payments", "started")) < events.index(("orders", "ready"))
    assert events.index(("toxiproxy", "started")) < events.index(("orders", "started"))
    assert events.index(("toxiproxy", "ready")) < events.index(("orders", "started"))


async def test_starting_is_fast(start: Start) -> None:
    """A generous bound against accidents; the budget itself is measured by a benchmark."""
    began_s = time.perf_counter()
    async with start(small_topology()):
        assert time.perf_counter() - began_s < 1.5


async def test_a_probe_tells_a_cut_link_from_a_healthy_one(start: Start) -> None:
    """However it was cut: closed, or swallowing in one direction or the other."""
    async with start(small_topology()) as environment:
        toxiproxy = environment.toxiproxy
        await toxiproxy.disable("payments->nats")
        closed = await environment.probe("payments->nats")
        neighbour = await environment.probe("orders->nats")
        await toxiproxy.enable("payments->nats")
        healed = await environment.probe("payments->nats")
        await toxiproxy.add_toxic("payments->nats", TimeoutToxic(), direction=Direction.UPSTREAM)
        deaf = await environment.probe("payments->nats", timeout_s=0.2)
        await toxiproxy.reset()
        await toxiproxy.add_toxic("orders->payments", TimeoutToxic(), direction=Direction.DOWNSTREAM)
        mute = await environment.probe("orders->payments", timeout_s=0.2)
        await toxiproxy.reset()

    assert closed is not None
    assert "connection refused" in closed
    assert neighbour is None
    assert healed is None
    assert deaf is not None
    assert "PONG after PING in vain" in deaf
    assert mute is not None
    assert "no answer within 0.2 s" in mute or "closed without an answer" in mute


async def test_a_probe_through_to_a_dead_server_says_so(start: Start) -> None:
    """The proxy still accepts; the probe must not be fooled."""
    async with start(small_topology()) as environment:
        await environment.kill("payments")
        dead = await environment.probe("orders->payments")
        await environment.start("payments")
        alive = await environment.probe("orders->payments")

    assert dead is not None
    assert alive is None


async def test_roles_are_killed_stopped_and_restarted_by_name(start: Start) -> None:
    """Broker and Toxiproxy too; after each the links work again."""
    async with start(small_topology()) as environment:
        pids = {role: environment.supervisor.pid(role) for role in ("orders", "nats", "toxiproxy")}
        await environment.kill("orders")
        await environment.start("orders")
        await environment.restart("nats")
        await environment.restart("toxiproxy")

        assert all(environment.supervisor.pid(role) != pid for role, pid in pids.items())
        assert [await environment.probe(link) for link in environment.links] == [None, None, None]
    assert environment.supervisor.unexpected_exits == ()


async def test_the_system_is_stopped_while_broker_and_proxies_stay(start: Start) -> None:
    """Evidence is collected from a system that has come to rest."""
    topology = small_topology(small_process("orders"), small_process("deaf", {"DEAF": "1"}, stop_grace_s=0.05))
    async with start(topology) as environment:
        await environment.stop_processes()
        ended = {event.process: event.detail for event in environment.supervisor.events if event.event == "exited"}

        assert ended == {"orders": "signal SIGTERM", "deaf": "signal SIGKILL"}
        assert await environment.probe("orders->nats") is None


async def test_a_process_that_dies_at_start_fails_the_environment_with_its_words(start: Start, temporary: Path) -> None:
    """And everything else is ended."""
    topology = small_topology(small_process("orders"), small_process("payments", {"DIES": "1"}))

    with pytest.raises(
        EnvironmentFailedError, match=r"payments ended with exit code 1(.|\n)*cannot find my configuration"
    ):
        async with start(topology):
            pytest.fail("it must not come to this")

    assert nothing_is_left(temporary)


async def test_an_exception_inside_ends_everything_and_goes_on(start: Start, temporary: Path) -> None:
    """Without a long wait for processes that do not listen."""
    topology = small_topology(small_process("orders"), small_process("deaf", {"DEAF": "1"}, stop_grace_s=60))
    began_s = time.perf_counter()

    with pytest.raises(LookupError, match="a bug in a test"):
        async with start(topology):
            raise LookupError("a bug in a test")

    assert nothing_is_left(temporary)
    assert time.perf_counter() - began_s < 10


@pytest.mark.parametrize("moment", ["nats started", "toxiproxy ready", "payments started", "payments ready"])
async def test_cancellation_at_any_moment_of_the_start_ends_everything(
    start: Start, temporary: Path, moment: str
) -> None:
    """Ctrl-C does not wait for the start to finish."""
    has_come = asyncio.Event()

    async def scope() -> None:
        def note(event: ProcessEvent) -> None:
            if f"{event.process} {event.event}" == moment:
                has_come.set()

        async with start(small_topology(), on_event=note):
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(scope())
    await wait_until(has_come.is_set, what=moment)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert nothing_is_left(temporary)


async def test_a_fixed_address_is_used_and_a_taken_one_is_refused(start: Start, temporary: Path) -> None:
    """`stormproof up` on the port people know."""
    async with start(small_topology()) as first:
        taken = first.address("orders")
        with pytest.raises(EnvironmentFailedError, match=f"cannot listen on {taken}: address already in use"):
            async with start(small_topology(), listen={"orders": taken}):
                pytest.fail("it must not come to this")
    async with start(small_topology(), listen={"orders": taken}) as second:
        assert second.address("orders") == taken
        assert await second.probe("orders->payments") is None

    assert nothing_is_left(temporary)


async def test_an_unknown_role_is_wrong_use(start: Start) -> None:
    """The sentence lists those that exist."""
    with pytest.raises(UsageError, match="cannot fix the address of 'shop': it is none of orders, payments, nats"):
        async with start(small_topology(), listen={"shop": "127.0.0.1:8080"}):
            pytest.fail("it must not come to this")
    async with start(small_topology()) as environment:
        with pytest.raises(UsageError, match="no role 'shop'"):
            await environment.restart("shop")
        with pytest.raises(UsageError, match="no link 'shop->nats'"):
            await environment.probe("shop->nats")


async def test_a_process_is_started_through_the_wrapper_that_was_given(start: Start, tmp_path: Path) -> None:
    """This is how bugs are planted: the system has no hook for it."""

    def wrapper(spec: ProcessSpec) -> tuple[str, ...]:
        return ("/usr/bin/env", "PLANTED=bug", *spec.argv) if spec.name == "payments" else spec.argv

    async with start(small_topology(), start_wrapper=wrapper):
        pass

    assert "born bug" in (tmp_path / "run" / "logs" / "payments.log").read_text()
    assert "born as written" in (tmp_path / "run" / "logs" / "orders.log").read_text()


async def test_processes_get_what_they_need_and_nothing_of_the_users_shell(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run must not depend on whose shell started it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LC_TIME", "C")
    async with start(small_topology()) as environment:
        raw = Path(f"/proc/{environment.supervisor.pid('orders')}/environ")
        if not raw.exists():
            pytest.skip("no /proc on this system")
        variables = dict(entry.split("=", 1) for entry in raw.read_text().split("\0") if entry)

    assert "AWS_SECRET_ACCESS_KEY" not in variables
    assert variables["LC_TIME"] == "C"
    assert variables["PYTHONUNBUFFERED"] == "1"
    assert variables["TMPDIR"].startswith(str(environment.scratch_directory))
    assert variables["LISTEN"] == environment.address("orders")


async def test_a_crash_during_the_run_is_kept_with_the_tail_of_the_log(start: Start) -> None:
    """The run goes on; the record says who died of what."""
    async with start(small_topology()) as environment:
        os.kill(environment.supervisor.pid("payments"), signal.SIGSEGV)
        await wait_until(lambda: not environment.supervisor.is_running("payments"), what="the crash of payments")

    (crash,) = environment.supervisor.unexpected_exits
    assert (crash.process, crash.how) == ("payments", "signal SIGSEGV")
    assert "born as written" in crash.log_tail


async def test_two_environments_at_once_do_not_meet(start: Start, temporary: Path) -> None:
    """Two runs on one machine, even of one process and one run id."""
    async with start(small_topology()) as first, start(small_topology()) as second:
        addresses = [*first.wiring.addresses.values(), *second.wiring.addresses.values()]
        assert len(set(addresses)) == len(addresses)
        assert await first.probe("orders->nats") is None
        assert await second.probe("orders->nats") is None

    assert nothing_is_left(temporary)
