"""The faults there are, one kind a file."""

from __future__ import annotations

from harness.system_under_test import FaultKind

FAULTS = (
    FaultKind(
        name="partition",
        summary="nothing crosses a link, both ways or one, and nobody is told (Toxiproxy)",
        needs=("toxiproxy",),
    ),
    FaultKind(
        name="kill",
        summary="a process dies as by SIGKILL and is started again",
        needs=(),
    ),
    FaultKind(
        name="isolate",
        summary="a server of a cluster hears no peers, or no clients, or neither, and nobody is told (Toxiproxy)",
        needs=("toxiproxy", "cluster"),
    ),
)
