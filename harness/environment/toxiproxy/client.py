"""The real Toxiproxy: a typed client of our own for its HTTP API.

Promises: every call ends within its time-out; what Toxiproxy refuses becomes an EnvironmentFailedError that names the
proxy and quotes the answer; names such as `payments->nats` need no care from the caller.

Does not: start the server (`server`) or find it (`binary`).

Traps, measured or read in the source of 2.12: a black-holed upstream wedges the whole API, so a time-out here means
"restart Toxiproxy". Removing `timeout` closes the connections it held. The byte counters grow only when a connection
*ends*: what a `timeout` toxic swallows shows after the heal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from harness.environment.loopback_http import Answer, HttpError, exchange
from harness.environment.toxiproxy.toxics import Direction, Toxic
from harness.errors import EnvironmentFailedError

CALL_TIMEOUT_S = 2.0
_REFUSED_FROM = 400
_COUNTER = re.compile(r"toxiproxy_proxy_(received|sent)_bytes_total\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy as Toxiproxy describes it."""

    name: str
    listen: str
    upstream: str
    is_enabled: bool
    toxics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCounters:
    """Bytes of all *ended* connections of one proxy in one direction.

    received_bytes: read from the sender. sent_bytes: passed on to the other side.
    """

    received_bytes: int = 0
    sent_bytes: int = 0

    @property
    def swallowed_bytes(self) -> int:
        """What was read and never passed on."""
        return self.received_bytes - self.sent_bytes


class ToxiproxyClient:
    """The API of one Toxiproxy server."""

    def __init__(self, address: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """address: `host:port` of the API."""
        self.address = address
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"http://{self.address}"

    async def version(self) -> str:
        """The server's version."""
        answer = await self._call("GET", "/version", about="the version")
        try:
            return str(json.loads(answer.body)["version"])
        except (ValueError, KeyError, TypeError):
            return answer.text

    async def create(self, name: str, *, listen: str, upstream: str) -> Proxy:
        """Create one enabled proxy; it listens when this returns."""
        document = {"name": name, "listen": listen, "upstream": upstream, "enabled": True}
        answer = await self._call("POST", "/proxies", document=document, about=f"creating proxy {name!r} on {listen}")
        return _proxy(answer)

    async def delete(self, name: str) -> None:
        """Delete a proxy and end its connections."""
        await self._call("DELETE", _path(name), about=f"deleting proxy {name!r}")

    async def proxies(self) -> dict[str, Proxy]:
        """All proxies by name."""
        answer = await self._call("GET", "/proxies", about="listing the proxies")
        return {name: _proxy_of(document) for name, document in _mapping(answer).items()}

    async def proxy(self, name: str) -> Proxy:
        """One proxy."""
        return _proxy(await self._call("GET", _path(name), about=f"reading proxy {name!r}"))

    async def enable(self, name: str) -> None:
        """Listen again."""
        await self._call("PATCH", _path(name), document={"enabled": True}, about=f"enabling proxy {name!r}")

    async def disable(self, name: str) -> None:
        """Close all connections and refuse new ones, until `enable`."""
        await self._call("PATCH", _path(name), document={"enabled": False}, about=f"disabling proxy {name!r}")

    async def add_toxic(
        self, proxy: str, toxic: Toxic, *, direction: Direction, name: str | None = None, toxicity: float = 1.0
    ) -> str:
        """Add a toxic and return its name (`<kind>_<direction>` by default).

        toxicity: the share of connections it works on, drawn once per connection, not per message.
        """
        name = name or f"{toxic.kind}_{direction}"
        document = {
            "name": name,
            "type": toxic.kind,
            "stream": str(direction),
            "toxicity": toxicity,
            "attributes": toxic.attributes(),
        }
        await self._call(
            "POST", f"{_path(proxy)}/toxics", document=document, about=f"adding toxic {name!r} to proxy {proxy!r}"
        )
        return name

    async def remove_toxic(self, proxy: str, name: str) -> None:
        """Remove a toxic."""
        path = f"{_path(proxy)}/toxics/{quote(name, safe='')}"
        await self._call("DELETE", path, about=f"removing toxic {name!r} from proxy {proxy!r}")

    async def toxics(self, proxy: str) -> tuple[str, ...]:
        """The names of the toxics on one proxy."""
        return (await self.proxy(proxy)).toxics

    async def toxic_attributes(self, proxy: str, name: str) -> dict[str, int]:
        """The attributes of one toxic as Toxiproxy holds them."""
        path = f"{_path(proxy)}/toxics/{quote(name, safe='')}"
        answer = await self._call("GET", path, about=f"reading toxic {name!r} of proxy {proxy!r}")
        attributes = _mapping(answer).get("attributes")
        return {str(key): int(value) for key, value in attributes.items()} if isinstance(attributes, dict) else {}

    async def reset(self) -> None:
        """Enable every proxy and remove every toxic."""
        await self._call("POST", "/reset", about="resetting all proxies")

    async def bytes_of(self, proxy: str, direction: Direction) -> ByteCounters:
        """The counters of one proxy and direction; zeros while no connection of it has ended."""
        answer = await self._call("GET", "/metrics", about="reading the byte counters")
        return byte_counters(answer.text).get((proxy, direction), ByteCounters())

    async def _call(self, method: str, path: str, *, document: object = None, about: str) -> Answer:
        try:
            answer = await exchange(self.address, method, path, document=document, timeout_s=self._timeout_s)
        except TimeoutError as error:
            raise EnvironmentFailedError(
                f"Toxiproxy at {self.address} did not answer within {self._timeout_s:g} s to {about}; "
                "a black-holed upstream wedges its API, restart it"
            ) from error
        except (OSError, HttpError) as error:
            raise EnvironmentFailedError(f"Toxiproxy at {self.address} failed at {about}: {error}") from error
        if answer.status >= _REFUSED_FROM:
            raise EnvironmentFailedError(
                f"Toxiproxy at {self.address} refused {about}: {answer.status} {_reason(answer)}"
            )
        return answer


def byte_counters(metrics: str) -> dict[tuple[str, Direction], ByteCounters]:
    """The byte counters in a page of Prometheus text, by proxy and direction."""
    sums: dict[tuple[str, Direction], dict[str, int]] = {}
    for line in metrics.splitlines():
        match = _COUNTER.fullmatch(line.strip())
        if match is None:
            continue
        which, raw_labels, value = match.groups()
        labels = {name: re.sub(r"\\(.)", r"\1", text) for name, text in _LABEL.findall(raw_labels)}
        counts = sums.setdefault((labels["proxy"], Direction(labels["direction"])), {"received": 0, "sent": 0})
        counts[which] += int(float(value))  # one series per listener: a proxy that was recreated has several
    return {
        key: ByteCounters(received_bytes=counts["received"], sent_bytes=counts["sent"]) for key, counts in sums.items()
    }


def _path(proxy: str) -> str:
    return f"/proxies/{quote(proxy, safe='')}"


def _mapping(answer: Answer) -> dict[str, object]:
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise EnvironmentFailedError(f"Toxiproxy answered something that is not a JSON object: {answer.text[:200]!r}")
    return document


def _proxy(answer: Answer) -> Proxy:
    return _proxy_of(_mapping(answer))


def _proxy_of(document: object) -> Proxy:
    if not isinstance(document, dict):
        raise EnvironmentFailedError(f"Toxiproxy described a proxy as {document!r}")
    toxics: Iterable[object] = document.get("toxics") or ()
    return Proxy(
        name=str(document.get("name")),
        listen=str(document.get("listen")),
        upstream=str(document.get("upstream")),
        is_enabled=document.get("enabled") is True,
        toxics=tuple(str(toxic.get("name")) for toxic in toxics if isinstance(toxic, dict)),
    )


def _reason(answer: Answer) -> str:
    try:
        document = json.loads(answer.body)
        return str(document["error"] if "error" in document else document["title"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
