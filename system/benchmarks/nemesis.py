"""The storms: what is done to a shop under load, and how it is undone.

Promises: when a storm is over, whatever it broke works again (habits are reset, killed parts are ready); a part that
ends by itself meanwhile is an error; what dies with a process and is needed afterwards is read before it is killed.

| storm | what is done |
|---|---|
| `silent-provider` | the provider takes requests and never answers, for `silent_s` |
| `broker-restarts` | nats-server is killed and started at once, ten times, 2 s apart |
| `kill-orders`, `kill-payments`, `kill-provider` | one service is killed and started 0.5 s later, three times |

Killed means SIGKILL. Between being ready and being killed again a service has `BETWEEN_KILLS_S`, under load; the
provider is killed again only once the breaker lets all calls through, because nobody calls it before.
"""

from __future__ import annotations

import http.client
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from system.benchmarks.parts import LOOPBACK, BenchmarkError, Parts
from system.benchmarks.shop import Shop

BROKER_RESTARTS = 10
BROKER_RESTART_EVERY_S = 2.0
KILLS = 3
START_AFTER_S = 0.5
BETWEEN_KILLS_S = 2.0
ASK_WITHIN_S = 5.0
CLOSED_WITHIN_S = 60.0
LOOK_EVERY_S = 0.1

HABITS_PATH = "/admin/habits"
OPENED = "breaker_opened_total"
STATE = "breaker_state"


class Nemesis:
    """Plays storms on one shop. silent_s: how long a silent provider is silent. tell: called with what is done."""

    def __init__(self, parts: Parts, shop: Shop, *, silent_s: float, tell: Callable[[str], None]) -> None:
        self._parts = parts
        self._shop = shop
        self._silent_s = silent_s
        self._tell = tell
        self._openings = 0
        self.exit_codes: dict[str, list[int]] = defaultdict(list)

    def silent_provider(self) -> None:
        """Have the provider answer nobody."""
        self._habits("PUT", b'{"silent": true}')
        self._tell(f"the provider is silent for {self._silent_s:g} s")
        time.sleep(self._silent_s)
        self._habits("DELETE", b"")
        self._parts.check()

    def broker_restarts(self) -> None:
        """Restart the broker again and again."""
        for number in range(BROKER_RESTARTS):
            began_s = time.monotonic()
            self._kill("nats-server")
            self._shop.start_again(self._parts, "nats-server")
            self._tell(
                f"restart {number + 1} of {BROKER_RESTARTS}, {time.monotonic() - began_s:.2f} s without a broker"
            )
            if number + 1 < BROKER_RESTARTS:
                time.sleep(max(0.0, BROKER_RESTART_EVERY_S - (time.monotonic() - began_s)))

    def kill_orders(self) -> None:
        """Kill orders again and again."""
        self._kill_service("orders")

    def kill_payments(self) -> None:
        """Kill payments again and again."""
        self._kill_service("payments")

    def kill_provider(self) -> None:
        """Kill the provider again and again."""
        self._kill_service("provider")

    def breaker_openings(self) -> int:
        """How often the breaker has opened, in all lives of payments."""
        return self._openings + self._metric(OPENED)

    def _kill_service(self, name: str) -> None:
        for number in range(KILLS):
            if number:
                time.sleep(BETWEEN_KILLS_S)
            if name == "provider":
                payments = self._shop.parts["payments"]
                self._parts.wait(payments, self._is_closed, what="calling the provider", within_s=CLOSED_WITHIN_S)
            if name == "payments":
                self._openings += self._metric(OPENED)
            began_s = time.monotonic()
            self._kill(name)
            time.sleep(START_AFTER_S)
            self._shop.start_again(self._parts, name)
            self._tell(f"kill {number + 1} of {KILLS}, {time.monotonic() - began_s:.2f} s without {name}")

    def _kill(self, name: str) -> None:
        self._parts.check()
        part = self._shop.parts[name]
        code = self._parts.kill(part)
        if code != -signal.SIGKILL:
            raise part.failed(f"ended with code {code} before it could be killed")
        self.exit_codes[name].append(code)

    def _habits(self, method: str, body: bytes) -> None:
        status, answer = self._ask("provider", method, HABITS_PATH, body)
        if status != http.HTTPStatus.OK:
            raise BenchmarkError(f"{method} {HABITS_PATH} was answered {status}: {answer.decode()}")

    def _is_closed(self) -> bool:
        time.sleep(LOOK_EVERY_S)  # an answer costs payments a millisecond
        return self._metric(STATE) == 0

    def _metric(self, name: str) -> int:
        _, metrics = self._ask("payments", "GET", "/metrics", b"")
        found = re.search(rf"^{name} (\S+)$", metrics.decode(), re.MULTILINE)
        if found is None:
            raise BenchmarkError(f"payments does not say {name} in its metrics")
        return int(float(found[1]))

    def _ask(self, name: str, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, self._shop.ports[name], timeout=ASK_WITHIN_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkError(f"{name} did not answer {method} {path}: {error}") from None
        finally:
            connection.close()


STORMS: Mapping[str, Callable[[Nemesis], None]] = {
    "silent-provider": Nemesis.silent_provider,
    "broker-restarts": Nemesis.broker_restarts,
    "kill-orders": Nemesis.kill_orders,
    "kill-payments": Nemesis.kill_payments,
    "kill-provider": Nemesis.kill_provider,
}
