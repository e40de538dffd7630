"""What a fault program and a workload see of a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.records import FaultWindow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.collection.history import History
    from harness.collection.otlp import OtlpReceiver
    from harness.environment.backend import Environment
    from harness.system_under_test import Client


@dataclass(slots=True, kw_only=True)
class Stage:
    """The running system, the history so far, and the place where fault windows are written.

    client: a customer of the system. directory: the run directory. say: prints one line of progress.
    """

    environment: Environment
    history: History
    client: Client
    receiver: OtlpReceiver
    directory: Path
    say: Callable[[str], None]
    windows: list[FaultWindow] = field(default_factory=list)

    def record(self, window: FaultWindow) -> None:
        """Keep a fault window; a later one of the same number takes its place."""
        self.windows = [*(each for each in self.windows if each.number != window.number), window]
