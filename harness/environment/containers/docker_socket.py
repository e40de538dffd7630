"""The Docker engine of this host, asked over its Unix socket: HTTP, with nothing but the standard library.

Promises: each call answers or raises `DockerError` within its time-out, whatever the engine does.

Does not: create containers (`host` does, through testcontainers), find images, or know whose a container is.
The guardian loads this file by its path, under `python -I`, so it imports nothing of the harness and nothing that has
to be installed.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

DEFAULT_SOCKET = Path("/var/run/docker.sock")
HOST_VARIABLE = "DOCKER_HOST"

CALL_WITHIN_S = 5.0
REMOVE_WITHIN_S = 10.0
LOOK_INTERVAL_S = 0.02

NOT_FOUND = 404
CONFLICT = 409
ALREADY_SO = 304


class DockerError(Exception):
    """The engine could not be asked, or refused. status: its HTTP answer, None when there was none."""

    def __init__(self, words: str, *, status: int | None = None) -> None:
        """words: one clause for a person."""
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSeen:
    """A container as the engine lists it, running or not."""

    id: str
    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """How a container fares.

    pid: of its first process, on the engine's host; 0 when it does not run. stop_signal: what asks it to end; SIGTERM,
    unless its image says otherwise (PostgreSQL's fast shutdown is SIGINT).
    """

    is_running: bool
    pid: int
    exit_code: int
    is_out_of_memory: bool
    stop_signal: str


def socket_path(variables: Mapping[str, str]) -> Path:
    """Where the engine of this host listens: `DOCKER_HOST`, else the usual place. Raises DockerError for another's."""
    chosen = variables.get(HOST_VARIABLE, "")
    if not chosen:
        return DEFAULT_SOCKET
    if not chosen.startswith("unix://"):
        raise DockerError(f"{HOST_VARIABLE}={chosen} is not an engine on this host, which it must be (unix://...)")
    return Path(chosen.removeprefix("unix://"))


class DockerSocket:
    """One engine. Each call is a connection of its own, so that calls from several threads do not meet."""

    def __init__(self, path: Path, *, timeout_s: float = CALL_WITHIN_S) -> None:
        """timeout_s: how long the engine may be silent within one call."""
        self.path = path
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        """As `DOCKER_HOST` has it."""
        return f"unix://{self.path}"

    def ping(self) -> None:
        """Return when the engine answers."""
        self.ask("GET", "/_ping")

    def containers(self, label: str, value: str | None = None) -> tuple[ContainerSeen, ...]:
        """All containers that carry this label (with this value), running or not."""
        wanted = label if value is None else f"{label}={value}"
        rows = self.ask("GET", "/containers/json", {"all": "1", "filters": json.dumps({"label": [wanted]})})
        return tuple(
            ContainerSeen(id=row["Id"], name=(row.get("Names") or ["/"])[0].lstrip("/"), labels=row.get("Labels") or {})
            for row in rows
        )

    def state(self, container: str) -> ContainerState:
        """How a container fares now."""
        seen = self.ask("GET", f"/containers/{quote(container)}/json")
        state = seen["State"]
        return ContainerState(
            is_running=bool(state["Running"]),
            pid=int(state["Pid"]),
            exit_code=int(state["ExitCode"]),
            is_out_of_memory=bool(state.get("OOMKilled")),
            stop_signal=str(seen["Config"].get("StopSignal") or "SIGTERM"),
        )

    def wait_end(self, container: str) -> ContainerState:
        """How it ended; waits until the engine knows of its end as well, within the time-out."""
        self.ask("POST", f"/containers/{quote(container)}/wait")
        return self.state(container)

    def signal(self, container: str, name: str) -> None:
        """Send a signal to its first process; nothing when it has just ended. One that is paused is thawed by it."""
        self._unless_ended("POST", f"/containers/{quote(container)}/kill", {"signal": name})

    def pause(self, container: str) -> None:
        """Freeze all its processes."""
        self.ask("POST", f"/containers/{quote(container)}/pause")

    def unpause(self, container: str) -> None:
        """Thaw them."""
        self.ask("POST", f"/containers/{quote(container)}/unpause")

    def remove(self, container: str) -> None:
        """Kill and remove it; nothing when it is gone or somebody is removing it this moment."""
        self._unless_ended("DELETE", f"/containers/{quote(container)}", {"force": "1", "v": "1"})

    def remove_labelled(self, label: str, value: str, *, within_s: float = REMOVE_WITHIN_S) -> frozenset[str]:
        """Remove all containers that carry this very label until none is listed; returns the names there were."""
        deadline_s = time.monotonic() + within_s
        seen: set[str] = set()
        while left := self.containers(label, value):
            for container in left:
                seen.add(container.name)
                self.remove(container.id)
            if time.monotonic() > deadline_s:
                names = ", ".join(container.name for container in left)
                raise DockerError(f"{self.url} did not remove {names} within {within_s:g} s")
            time.sleep(LOOK_INTERVAL_S)
        return frozenset(seen)

    def ask(self, method: str, path: str, query: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON, taken apart where it is asked for
        """One call; the JSON of its answer, None where it has none."""
        with self._answer(method, path, query) as answer:
            content = answer.read()
        try:
            return json.loads(content) if "json" in (answer.getheader("Content-Type") or "") else None
        except ValueError as error:
            raise DockerError(f"{self.url} answered {method} {path} with what is not JSON") from error

    def _unless_ended(self, method: str, path: str, query: Mapping[str, str]) -> None:
        try:
            self.ask(method, path, query)
        except DockerError as error:
            if error.status not in (NOT_FOUND, CONFLICT, ALREADY_SO):
                raise

    @contextmanager
    def _answer(self, method: str, path: str, query: Mapping[str, str] | None) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, self._timeout_s)
        try:
            connection.request(method, f"{path}?{urlencode(query)}" if query else path)
            with connection.getresponse() as answer:
                if answer.status >= 400 or answer.status == ALREADY_SO:  # noqa: PLR2004 - the errors of HTTP begin there
                    raise DockerError(f"{self.url}: {_message(answer)}", status=answer.status)
                yield answer
        except TimeoutError as error:
            raise DockerError(f"{self.url} did not answer {method} {path} within {self._timeout_s:g} s") from error
        except OSError as error:
            raise DockerError(f"{self.url} cannot be asked: {error.strerror or error}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise DockerError(f"{self.url} broke off its answer to {method} {path}: {error}") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _message(answer: http.client.HTTPResponse) -> str:
    content = answer.read().decode("utf-8", "replace").strip()
    try:
        return str(json.loads(content)["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return content[:200] or f"status {answer.status}"
