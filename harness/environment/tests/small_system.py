"""A system as small as can be, for tests of the environment: processes of a dozen lines and a topology of them.

Not a test itself. Each process serves HTTP 200 on its listen address; variables make it die at start, or deaf to
SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.environment.processes import guardian
from harness.environment.topology import BROKER, Link, ProcessSpec, Topology, Wiring

SERVER = """
import os, signal, socket, sys
print("born", os.environ.get("PLANTED", "as written"), flush=True)
if "DIES" in os.environ:
    sys.exit("cannot find my configuration")
if "DEAF" in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
host, port = os.environ["LISTEN"].split(":")
server = socket.create_server((host, int(port)))
while True:
    client, _ = server.accept()
    client.settimeout(0.2)
    try:
        if client.recv(65536):
            client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    except OSError:
        pass
    client.close()
"""

WAIT_WITHIN_S = 10.0
LOOK_INTERVAL_S = 0.01


def server_argv() -> tuple[str, ...]:
    """The command of the small server; -S because it needs no packages and starts twice as fast."""
    return (sys.executable, "-S", "-c", SERVER)


def small_process(name: str, variables: Mapping[str, str] | None = None, *, stop_grace_s: float = 5.0) -> ProcessSpec:
    """One process; variables change how it behaves."""

    def environment(wiring: Wiring) -> Mapping[str, str]:
        return {"LISTEN": wiring.listen(name), "DATA": str(wiring.directory(name)), **(variables or {})}

    return ProcessSpec(
        name=name,
        argv=server_argv(),
        environment=environment,
        ready_path="/ready",
        stop_grace_s=stop_grace_s,
        start_within_s=10.0,
    )


def small_topology(*processes: ProcessSpec) -> Topology:
    """Two processes (or those given), each with a link to the broker, and one between the first two."""
    specs = processes or (small_process("orders"), small_process("payments"))
    links = [Link(client=spec.name, server=BROKER) for spec in specs]
    if len(specs) > 1:
        links.append(Link(client=specs[0].name, server=specs[1].name))
    return Topology(processes=specs, links=tuple(links))


def owned_by(harness_pid: int) -> list[int]:
    """Every process alive that carries a label of this harness, its guardians included."""
    return [
        pid
        for pid in guardian.own_processes()
        if any(label.startswith(f"{harness_pid}:") for label in guardian.labels_of(pid).values())
    ]


def scratch_directories(temporary: Path) -> list[str]:
    """What runs have left under a temporary directory: scratch directories and port locks."""
    return [path.name for path in temporary.glob("stormproof-*")]


async def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    """Wait for a condition of the operating system that nothing can be awaited for."""
    deadline_s = time.monotonic() + WAIT_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {WAIT_WITHIN_S:g} s in vain for: {what}"
        await asyncio.sleep(LOOK_INTERVAL_S)
