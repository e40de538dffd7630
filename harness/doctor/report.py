"""What the doctor found, put together: parts, backends of these parts, and faults and options on each backend.

Promises: a pure function of what was found; a backend works exactly when all it needs does, a fault on a backend when
the backend works and has what the fault needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.doctor import containers, external, host, programs
from harness.doctor.ability import Ability, State, all_of, broken
from harness.environment.choice import BACKENDS, CLUSTER, CLUSTER_CONTAINER, CONTAINER, EMBEDDED, EXTERNAL
from harness.system_under_test import FaultKind

TLS_LIBRARY = "cryptography"
POSTGRES_CLIENT = "asyncpg"

POSTGRES_OPTION = "--postgres"
TLS_OPTION = "--tls"
VERSION_OPTION = "--nats-version"
LOAD_COMMAND = "load"

_EVERY_RUN = (host.RUNS, host.TEMPORARY, host.PORTS, host.GUARDIAN)
_CLUSTER_NEED = "cluster"
_PROXIES_NEED = "toxiproxy"
_PROXIES = {
    EMBEDDED: programs.TOXIPROXY,
    CLUSTER: programs.TOXIPROXY,
    CONTAINER: containers.TOXIPROXY_IMAGE_NAME,
    CLUSTER_CONTAINER: containers.TOXIPROXY_IMAGE_NAME,
    EXTERNAL: external.YOUR_TOXIPROXY,
}
_NOT = {State.BROKEN: "not", State.UNKNOWN: "not known"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One fault or option, and how it fares on each backend, by name."""

    ability: Ability
    on: Mapping[str, Ability]

    def document(self) -> dict[str, object]:
        """The JSON object of the contract."""
        return {**self.ability.document(), "backends": [each.document() for each in self.on.values()]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A backend that was started for real. words: the options that choose it."""

    words: tuple[str, ...]
    ability: Ability

    def document(self) -> dict[str, object]:
        """The JSON object of the contract."""
        return {"words": list(self.words), **self.ability.document()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found. remarks: about the host as a whole, in the order they are told."""

    parts: tuple[Ability, ...]
    backends: tuple[Ability, ...]
    needs: Mapping[str, tuple[str, ...]]
    faults: tuple[Spread, ...]
    options: tuple[Spread, ...]
    rehearsals: tuple[Rehearsal, ...] = field(default=())

    def document(self) -> dict[str, object]:
        """The JSON document of the contract, without the name of its schema."""
        return {
            "backends": [{**each.document(), "needs": list(self.needs[each.name])} for each in self.backends],
            "faults": [each.document() for each in self.faults],
            "options": [each.document() for each in self.options],
            "parts": [each.document() for each in self.parts],
            "rehearsals": [each.document() for each in self.rehearsals],
        }


def needs_of(backend: str) -> tuple[str, ...]:
    """The parts that a backend stands on, by name."""
    contained = (
        containers.ENGINE,
        containers.TESTCONTAINERS,
        containers.NATS_IMAGE,
        containers.TOXIPROXY_IMAGE_NAME,
        containers.TRIAL,
    )
    return {
        EMBEDDED: (programs.NATS_SERVER, programs.TOXIPROXY),
        CLUSTER: (programs.NATS_SERVER, programs.TOXIPROXY),
        CONTAINER: contained,
        CLUSTER_CONTAINER: contained,
        EXTERNAL: (external.YOUR_BROKER, external.YOUR_TOXIPROXY),
    }[backend] + _EVERY_RUN


def put_together(
    parts: Sequence[Ability],
    *,
    faults: Sequence[FaultKind],
    rehearsals: Sequence[Rehearsal] = (),
) -> Report:
    """Say what works of what was found. rehearsals: what was really started is worth more than what its parts say."""
    found = {part.name: part for part in parts}
    needs = {backend: needs_of(backend) for backend in BACKENDS}
    tried = {rehearsal.words: rehearsal.ability for rehearsal in rehearsals}
    backends = {}
    for name in BACKENDS:
        by_parts = all_of(name, (found[need] for need in needs[name]))
        rehearsed = tried.get(words_of(name))
        backends[name] = by_parts if rehearsed is None else replace(rehearsed, name=name)
    return Report(
        parts=tuple(parts),
        backends=tuple(backends.values()),
        needs=needs,
        faults=tuple(_fault(kind, backends, found) for kind in faults),
        options=tuple(_options(backends, found, tried)),
        rehearsals=tuple(rehearsals),
    )


def words_of(backend: str, *options: str) -> tuple[str, ...]:
    """How a backend is chosen on the command line."""
    return (*(() if backend == EMBEDDED else ("--backend", backend)), *options)


def _fault(kind: FaultKind, backends: Mapping[str, Ability], found: Mapping[str, Ability]) -> Spread:
    return _spread(kind.name, {name: _fault_on(kind, backend, found) for name, backend in backends.items()})


def _fault_on(kind: FaultKind, backend: Ability, found: Mapping[str, Ability]) -> Ability:
    needs = [_need(name, backend.name, found) for name in kind.needs]
    ability = all_of(backend.name, [replace(backend, name="backend"), *needs])
    if backend.name == EXTERNAL and ability.works:
        words = f"what is yours is harmed only with --allow-fault {kind.name}"
        return replace(ability, why="; ".join(filter(None, (ability.why, words))), remedy=f"--allow-fault {kind.name}")
    return ability


def _need(name: str, backend: str, found: Mapping[str, Ability]) -> Ability:
    if name == _PROXIES_NEED:
        return found[_PROXIES[backend]]
    if name == _CLUSTER_NEED:
        if backend in (CLUSTER, CLUSTER_CONTAINER):
            return Ability(name=name, state=State.WORKS)
        return broken(name, "the broker is one server here", f"--backend {CLUSTER}")
    return found.get(name) or broken(name, "nobody here knows this part", "mend `needs` of the fault")


def _options(
    backends: Mapping[str, Ability], found: Mapping[str, Ability], tried: Mapping[tuple[str, ...], Ability]
) -> Iterable[Spread]:
    needs = {
        POSTGRES_OPTION: (programs.POSTGRESQL, POSTGRES_CLIENT),
        TLS_OPTION: (TLS_LIBRARY,),
        VERSION_OPTION: (programs.OTHER_VERSIONS,),
        LOAD_COMMAND: (programs.LOCUST,),
    }
    contained = {POSTGRES_OPTION: (containers.POSTGRES_IMAGE_NAME, POSTGRES_CLIENT)}
    for option, of_host in needs.items():
        on = {}
        for name, backend in backends.items():
            if name == EXTERNAL and option in (TLS_OPTION, VERSION_OPTION):
                on[name] = broken(name, "your broker is taken as it is", "choose another backend")
                continue
            mine = contained.get(option, of_host) if name in (CONTAINER, CLUSTER_CONTAINER) else of_host
            by_parts = all_of(name, [replace(backend, name="backend"), *(found[need] for need in mine)])
            on[name] = replace(tried.get(words_of(name, option), by_parts), name=name)
        yield _spread(option, on)


def _spread(name: str, on: Mapping[str, Ability]) -> Spread:
    """What works on any backend works; on which it does not, and why, is said."""
    amiss = [each for each in on.values() if not each.works]
    remedies = [each.remedy for each in amiss]
    best = min((each.state for each in on.values()), key=list(State).index)
    return Spread(
        ability=Ability(
            name=name,
            state=best,
            why="; ".join(f"{_NOT[each.state]} on {each.name}" for each in amiss),
            remedy="" if len(amiss) < len(on) else " && ".join(dict.fromkeys(filter(None, remedies))),
        ),
        on=on,
    )
