"""Opens an environment: whatever backend was chosen, everything answers on entry and nothing is left on exit.

Promises: on exit, however it comes, everything is stopped, the scratch directory is gone and the guardian has confirmed
it. SIGKILL of the harness leaves nothing either.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from harness.environment.addresses import assign_addresses, assign_links
from harness.environment.assembly import assemble
from harness.environment.choice import BackendChoice
from harness.environment.concurrency import shielded
from harness.environment.external import external_access, external_addresses, proxy_prefix
from harness.environment.layout import layout_of
from harness.environment.nats.access import fresh_access
from harness.environment.ports import PortLease
from harness.environment.private_files import write_private
from harness.environment.processes.ownership import Ownership, Reaped, reap_stale
from harness.environment.processes.supervisor import Supervisor
from harness.environment.run_site import Progress, Site
from harness.environment.running import RunningEnvironment, StartWrapper
from harness.environment.tls import make_certificates
from harness.environment.topology import Topology
from harness.environment.wiring import RunWiring, base_variables
from harness.records import ProcessEvent

CREDENTIALS_FILE = "nats.env"


@asynccontextmanager
async def open_environment(
    choice: BackendChoice,
    topology: Topology,
    *,
    run_id: str,
    run_directory: Path,
    seed: int,
    otlp_url: str,
    progress: Progress = lambda _line: None,
    listen: Mapping[str, str] | None = None,
    start_wrapper: StartWrapper = lambda spec: spec.argv,
    on_event: Callable[[ProcessEvent], None] = lambda _event: None,
) -> AsyncIterator[RunningEnvironment]:
    """Start a topology, yield it, and end it.

    run_directory: gets `logs/` and `spool/`; what else is made lies in a scratch directory that goes with the run.
    listen: fixed addresses by role (`{"orders": "127.0.0.1:8080"}`); all others are leased.
    start_wrapper: gives the argv of a process in place of its own; this is how bugs are planted.
    on_event: called with each process event as it is recorded.
    """
    began_s = time.monotonic()
    async with open_site(
        choice,
        topology,
        run_id=run_id,
        run_directory=run_directory,
        seed=seed,
        otlp_url=otlp_url,
        progress=progress,
        listen=listen,
        on_event=on_event,
    ) as site:
        environment = RunningEnvironment(
            topology=topology, site=site, parts=await assemble(site), start_wrapper=start_wrapper
        )
        is_finished = False
        try:
            await environment.start_everything()
            progress(f"environment ready in {time.monotonic() - began_s:.2f} s")
            yield environment
            is_finished = True
        finally:
            await shielded(environment.end_everything(is_patient=is_finished))


@asynccontextmanager
async def open_site(
    choice: BackendChoice,
    topology: Topology,
    *,
    run_id: str,
    run_directory: Path | None,
    seed: int = 0,
    otlp_url: str = "",
    progress: Progress = lambda _line: None,
    listen: Mapping[str, str] | None = None,
    on_event: Callable[[ProcessEvent], None] = lambda _event: None,
) -> AsyncIterator[Site]:
    """Own what a run needs before anything of it starts; yields where to build its parts. On exit nothing is left.

    run_directory: None keeps nothing, logs and spool go with the run.
    """
    reaped = await asyncio.to_thread(reap_stale)
    if reaped != Reaped(processes=0, directories=0):
        progress(
            f"removed what a crashed run left: {reaped.processes} processes, {reaped.containers} containers, "
            f"{reaped.directories} directories"
        )
    ownership = Ownership.take(run_id)
    try:
        with PortLease() as lease:
            yield _site(
                choice,
                topology,
                ownership=ownership,
                lease=lease,
                run_directory=ownership.scratch_directory if run_directory is None else run_directory,
                seed=seed,
                otlp_url=otlp_url,
                fixed=listen or {},
                progress=progress,
                on_event=on_event,
            )
    finally:
        await shielded(ownership.release())


def _site(
    choice: BackendChoice,
    topology: Topology,
    *,
    ownership: Ownership,
    lease: PortLease,
    run_directory: Path,
    seed: int,
    otlp_url: str,
    fixed: Mapping[str, str],
    progress: Progress,
    on_event: Callable[[ProcessEvent], None],
) -> Site:
    """Lay everything out: addresses, credentials, directories. Starts nothing."""
    layout = layout_of(
        topology,
        is_cluster=choice.is_cluster,
        has_database=choice.postgres,
        has_monitoring=not choice.is_external,
    )
    theirs = external_addresses(choice) if choice.is_external else {}
    ours = [role for role in layout.roles if role not in theirs]
    addresses = {**assign_addresses(ours, fixed=fixed, lease=lease), **theirs}
    scratch = ownership.scratch_directory
    certificates = make_certificates(scratch / "tls") if choice.tls else None
    nodes = [addresses[node] for node in layout.nodes]
    wiring = RunWiring(
        spool_directory=_made(run_directory / "spool"),
        otlp_url=otlp_url,
        seed=seed,
        addresses=addresses,
        links=assign_links(
            layout,
            addresses=addresses,
            lease=lease,
            prefix=proxy_prefix(ownership.label) if choice.is_external else "",
        ),
        groups=layout.groups,
        scratch_directory=scratch,
        access=(
            external_access(choice)
            if choice.is_external
            else fresh_access(nodes, ca_file=None if certificates is None else certificates.ca_file)
        ),
        replicas=len(nodes),
    )
    site = Site(
        choice=choice,
        layout=layout,
        wiring=wiring,
        supervisor=Supervisor(owner_label=ownership.label, on_event=on_event),
        variables=base_variables(_made(scratch / ".tmp")),
        log_directory=_made(run_directory / "logs"),
        progress=progress,
        tls=None if certificates is None else certificates.server,
        credentials_path=scratch / CREDENTIALS_FILE,
    )
    write_private(site.credentials_path, _as_shell(wiring.access.variables()))
    return site


def _as_shell(variables: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
