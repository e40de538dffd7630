"""`python -m system.tests.dying`: payments, which kills itself (SIGKILL) when it first comes to the step `DYING_STEP`.

It is the service as it is, but for the one method around which it dies: the moment is a certainty, not a race.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from system.payments.cancellation import CancellationHandler
from system.payments.handler import PaymentHandler
from system.payments.provider_client import ProviderClient
from system.payments.service import main

STEPS: dict[str, tuple[type, str, bool]] = {
    # The method, and whether it is done when the process dies.
    "before-asking": (ProviderClient, "charge", False),
    "charged": (PaymentHandler, "charge", True),
    "recorded": (PaymentHandler, "record", True),
    "announced": (PaymentHandler, "announce", True),
    "acked": (PaymentHandler, "handle", True),
    "before-undoing": (ProviderClient, "refund", False),
    "undone": (CancellationHandler, "undo", True),
    "undoing-recorded": (CancellationHandler, "record", True),
    "undoing-announced": (CancellationHandler, "announce", True),
    "cancellation-acked": (CancellationHandler, "handle", True),
}


def plant(step: str) -> None:
    """Die at this step."""
    owner, name, is_done = STEPS[step]
    method: Callable[..., Awaitable[object]] = getattr(owner, name)

    async def dying(self: object, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        if is_done:
            await method(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


if __name__ == "__main__":
    plant(os.environ["DYING_STEP"])
    sys.exit(main())
