"""What the harness needs to know of a system to test it: the one object a stranger writes.

The harness finds it by name (`[tool.stormproof] system = "package.module:OBJECT"` in pyproject.toml). It says which
processes to start and how, which links they have, how to place an operation and read its state, where money is written
down, which invariants apply and which experiments exist. The harness asks nothing else and has no other door.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.collection.broker import KeyOf
    from harness.environment.backend import Environment
    from harness.environment.topology import Topology, Wiring
    from harness.invariants.invariant import Invariant
    from harness.records import Channel, LedgerEntry, Operation, State
    from harness.stage import Stage

CONFIGURATION = "pyproject.toml"
DEFAULT_WORKLOAD = "place"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One operation to be placed, a pure function of the run's seed.

    number: from 0. key: what it is about, known before it is sent, so that an unanswered one can still be followed.
    body: what is sent, as JSON text. trace_id (32 hex), span_id (16 hex): the context the client sends.
    """

    number: int
    kind: str
    key: str
    body: str
    trace_id: str
    span_id: str


class Client(Protocol):
    """A customer of the system: places operations and looks at what became of them."""

    async def place(self, request: Request, intended_ns: int) -> Operation:
        """Send one operation and return it with its outcome; a time-out is *unknown*, never an exception."""

    async def read(self, key: str) -> State | None:
        """Return what the public API says of a key, None when it cannot be asked now."""


class Program(Protocol):
    """A fault program: data that can be written down, and the playing of it."""

    def plan(self) -> list[dict[str, object]]:
        """Return the steps as JSON-able objects, for `plan.json`."""

    def check(self, environment: Environment) -> None:
        """Raise UsageError when a step cannot be played there: its target is not there, or must not be harmed."""

    async def play(self, stage: Stage) -> None:
        """Carry the steps out and record a fault window for each."""


class Experiment(Protocol):
    """A named experiment: steady load, and harm that is done meanwhile."""

    @property
    def name(self) -> str:
        """What `stormproof run` is given."""

    @property
    def summary(self) -> str:
        """One sentence for `stormproof list`."""

    @property
    def workload(self) -> str:
        """Which of the system's workloads customers carry out."""

    @property
    def backends(self) -> tuple[str, ...]:
        """The only backends it can be carried out on; empty for all."""

    @property
    def rate_per_s(self) -> float:
        """Operations a second, open loop."""

    @property
    def duration_s(self) -> float:
        """How long operations are placed."""

    def program(self, seed: int) -> Program:
        """Return the fault program for this seed; the same seed gives the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """One kind of fault, for `stormproof list` and `doctor`.

    needs: names of the parts it cannot do without (`toxiproxy`).
    """

    name: str
    summary: str
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProfile:
    """A Locust run with its default rate; Locust itself is a subprocess.

    users: how many operations may be in flight at once.
    """

    name: str
    summary: str
    locustfile: Path
    rate_per_s: float
    duration_s: float
    users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReading:
    """The ledger as it was found, and whether it is whole."""

    entries: tuple[LedgerEntry, ...]
    channel: Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemUnderTest:
    """Everything the harness knows of one system.

    entrance: name of the link clients come through. front: role of the process at its end (`orders`).
    traced: processes that number and spool their spans; each boot of them is expected in the spans channel.
    workloads: what customers ask, by name; each an endless stream of requests for a seed. `DEFAULT_WORKLOAD` is the one
    that tests, load and everybody who names none uses. client: opens a client at a base URL for a scope.
    read_ledger: called when the processes have stopped, with the run's wiring.
    settle_within_s: how long after the last heal (or the end of the load) everything may take to become final.
    """

    name: str
    topology: Topology
    entrance: str
    front: str
    streams: tuple[str, ...]
    key_attributes: tuple[str, ...]
    traced: tuple[str, ...]
    workloads: Mapping[str, Callable[[int], Iterator[Request]]]
    client: Callable[[str], AbstractAsyncContextManager[Client]]
    key_of_message: KeyOf
    read_ledger: Callable[[Wiring], LedgerReading]
    invariants: tuple[Invariant, ...]
    faults: tuple[FaultKind, ...]
    experiments: tuple[Experiment, ...]
    load_profiles: tuple[LoadProfile, ...]
    planted_bugs: Path
    settle_within_s: float = 15.0

    def requests(self, seed: int, workload: str = DEFAULT_WORKLOAD) -> Iterator[Request]:
        """Return a workload's requests. Raises UsageError that lists the workloads there are."""
        if workload not in self.workloads:
            known = ", ".join(self.workloads) or "none"
            raise UsageError(f"there is no workload {workload!r}; there is: {known}")
        return self.workloads[workload](seed)

    def experiment(self, name: str) -> Experiment:
        """Return the experiment of that name. Raises UsageError that lists the names there are."""
        return _named(self.experiments, name, "experiment")

    def load_profile(self, name: str) -> LoadProfile:
        """Return the load profile of that name. Raises UsageError that lists the names there are."""
        return _named(self.load_profiles, name, "load profile")


class _Named(Protocol):
    @property
    def name(self) -> str:
        """What it is called."""


N = TypeVar("N", bound=_Named)


def _named(things: tuple[N, ...], name: str, what: str) -> N:
    for thing in things:
        if thing.name == name:
            return thing
    known = ", ".join(thing.name for thing in things) or "none"
    raise UsageError(f"there is no {what} {name!r}; there is: {known}")


def configured_system(start: Path | None = None) -> SystemUnderTest:
    """Import the system named in the nearest pyproject.toml at or above `start` (the current directory).

    Raises UsageError when none is configured or it cannot be imported.
    """
    directory = (start or Path.cwd()).resolve()
    for folder in (directory, *directory.parents):
        path = folder / CONFIGURATION
        if path.is_file():
            name = _name_in(path)
            if name is not None:
                return load_system(name, folder)
    raise UsageError(
        f"no system under test is configured at or above {directory}: "
        f'add `system = "package.module:OBJECT"` under [tool.stormproof] in {CONFIGURATION}'
    )


def _name_in(path: Path) -> str | None:
    """Return what a pyproject.toml calls the system under test, None when it says nothing of one."""
    try:
        found: object = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key in ("tool", "stormproof", "system"):
        if not isinstance(found, dict):
            raise UsageError(f"{path} has something else than a table above {key!r}: write [tool.stormproof]")
        found = found.get(key)
        if found is None:
            return None
    if not isinstance(found, str):
        raise UsageError(f'{path} says system = {found!r}: write system = "package.module:OBJECT"')
    return found


def load_system(name: str, folder: Path) -> SystemUnderTest:
    """Import `package.module:OBJECT`, with `folder` on the import path."""
    module_name, _, attribute = name.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    # Processes of the system are started with `-m`, wherever this one was started: they must find the same modules.
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if str(folder) not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *known])
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises while it is imported
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"the system under test {name!r} cannot be imported from {folder}: {what}") from error
    if not isinstance(found, SystemUnderTest):
        raise UsageError(f"the system under test {name!r} is a {type(found).__name__}, not a SystemUnderTest")
    return found


Drive = Callable[["Stage"], Awaitable[int]]
"""What happens between start and settling; returns how many operations were begun, -1 when it cannot say."""
