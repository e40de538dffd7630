"""The connection to NATS.

Promises: an endless try to get back, with jitter; a silent partition is noticed within `PING_EVERY_S` x (`PINGS_MAX`
+ 1); an attempt to reconnect that gets no answer is given up after `CONNECT_ATTEMPT_S`; while there is no connection
nothing is accepted for sending, so nothing waits in a buffer that nobody watches. Should nats-py close for good (it
does so on most errors that a server reports) or stop trying, a new client takes over with the same subscriptions.

Does not: promise that what was sent arrived. That is what `Publisher` and acks are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Self

from system.errors import StartError
from system.jetstream.client import Client, Msg, Server, Subscription, errors, new_client
from system.metrics import Metrics
from system.settings import NatsSettings

log = logging.getLogger(__name__)


CONNECT_WITHIN_S = 30.0
"""How long a starting process waits for the broker before it gives up."""
CONNECT_ATTEMPT_S = 2.0
FIRST_WAITS_S = (0.03, 0.1, 0.25, 0.5)
"""Waits between attempts at start: the broker may be starting beside us, and start time matters."""
PING_EVERY_S = 1.0
PINGS_MAX = 2
CLOSE_WITHIN_S = 1.0
WATCH_EVERY_S = 1.0
STUCK_AFTER_S = 15.0
"""Without a connection and without an attempt at one for so long, nats-py is taken to have given up silently."""
RECONNECT_JITTER = 0.25
FIRST_RECONNECT_SHARE = 0.25
PENDING_MAX_BYTES = 1024 * 1024
"""Half of nats-py's own buffer: beyond that, its `publish` would block and swallow cancellations."""


class ConnectError(StartError):
    """The broker cannot be reached; the message is one sentence for a person."""


class NotConnectedError(Exception):
    """Nothing was sent, because there is no connection to send it through."""


class RequestError(Exception):
    """A request to the broker got no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What arrived for a subscription."""

    subject: str
    reply: str
    payload: bytes
    headers: Mapping[str, str]


Receiver = Callable[[Message], None]


class Connection:
    """One process's connection, open from `async with` until its end; `open` connects and `keep` keeps it."""

    def __init__(self, settings: NatsSettings, *, name: str, metrics: Metrics) -> None:
        self._settings = settings
        self._name = name
        self._client: Client | None = None
        self._receivers: dict[str, Receiver] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._on_connected: list[Callable[[], None]] = []
        self._up = asyncio.Event()
        self._closed_for_good = asyncio.Event()
        self._is_closing = False
        self._attempts = 0
        self._alive_at_s = time.monotonic()
        self._last_error: Exception | None = None
        self._disconnects = metrics.counter("nats_disconnects", "Times the connection to NATS was lost")
        self._reconnects = metrics.counter("nats_reconnects", "Times the connection to NATS was had again")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        """True while what is sent goes out."""
        return self._up.is_set() and self._client is not None and self._client.is_connected

    async def wait_connected(self) -> None:
        """Return once there is a connection; the caller sets the bound."""
        await self._up.wait()

    def on_connected(self, notice: Callable[[], None]) -> None:
        """Call `notice` after every connection that was made, when subscriptions are in place again."""
        self._on_connected.append(notice)

    async def open(self) -> None:
        """Connect, or raise `ConnectError` after `CONNECT_WITHIN_S`."""
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                await self._connect()
        except TimeoutError:
            reason = self._last_error or "no answer"
            raise ConnectError(
                f"NATS at {self._settings.url} could not be reached within {CONNECT_WITHIN_S:g} s: {reason}"
            ) from None

    async def keep(self) -> None:
        """Replace the client whenever nats-py closed it for good or stopped trying; runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_EVERY_S):
                    await self._closed_for_good.wait()
            if self.is_connected:
                self._alive_at_s = time.monotonic()
            elif self._closed_for_good.is_set() or self._is_stuck():
                log.error("the connection to NATS is gone for good (%s); opening a new one", self._last_error)
                await self._replace_client()

    async def subscribe(self, subject: str, receiver: Receiver) -> None:
        """Pass every message on `subject` to `receiver`, across reconnects."""
        self._receivers[subject] = receiver
        if self._client is not None:
            self._subscriptions[subject] = await self._client.subscribe(subject, cb=_coroutine(receiver))

    async def drain(self, subject: str, *, within_s: float) -> None:
        """End a subscription; what the server had sent is received before this returns, or `within_s` is over."""
        self._receivers.pop(subject, None)
        subscription = self._subscriptions.pop(subject, None)
        if subscription is None or not self.is_connected:
            return
        try:
            async with asyncio.timeout(within_s):
                await subscription.drain()  # type: ignore[no-untyped-call]
        except (errors.Error, TimeoutError) as error:
            log.info("the subscription to %s ended without a drain: %s %s", subject, type(error).__name__, error)

    async def send(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand a message to the connection; `NotConnectedError` if it certainly did not leave."""
        client = self._client
        if client is None or not self.is_connected:
            raise NotConnectedError("there is no connection to NATS")
        if client.pending_data_size > PENDING_MAX_BYTES:
            raise NotConnectedError(f"{client.pending_data_size} bytes are waiting to leave already")
        try:
            # A copy of the headers, because nats-py has been seen to change the caller's.
            await client.publish(subject, payload, reply=reply, headers=dict(headers) if headers else None)
        except errors.Error as error:
            raise NotConnectedError(str(error)) from None

    async def request(self, subject: str, payload: bytes = b"", *, within_s: float) -> bytes:
        """The answer to one request."""
        if self._client is None or not self.is_connected:
            raise RequestError(f"{subject}: there is no connection to NATS")
        try:
            answer = await self._client.request(subject, payload, timeout=within_s)
        except errors.NoRespondersError:
            raise RequestError(f"{subject}: nobody answers there (is JetStream enabled?)") from None
        except (errors.Error, TimeoutError) as error:
            raise RequestError(f"{subject}: {type(error).__name__} {error}") from None
        return bytes(answer.data)

    def new_inbox(self) -> str:
        """A subject prefix that nobody else uses."""
        return f"_INBOX.{random.SystemRandom().getrandbits(96):024x}"

    async def flush(self, *, within_s: float) -> None:
        """Return once the server has seen everything sent so far; `RequestError` if it cannot be known."""
        if self._client is None or not self.is_connected:
            raise RequestError("cannot flush: there is no connection to NATS")
        try:
            await self._client.flush(timeout=within_s)  # type: ignore[arg-type]  # declared int, takes seconds
        except (errors.Error, TimeoutError) as error:
            raise RequestError(f"cannot flush: {error}") from None

    async def close(self) -> None:
        """Close; nothing is received or sent any more."""
        self._is_closing = True
        self._up.clear()
        await self._close_client()

    def _is_stuck(self) -> bool:
        return time.monotonic() - self._alive_at_s > STUCK_AFTER_S + 2 * self._settings.reconnect_wait_s

    async def _replace_client(self) -> None:
        self._up.clear()
        await self._close_client()
        self._closed_for_good.clear()
        await asyncio.sleep(self._reconnect_wait_s())
        await self._connect()
        self._reconnects.add()

    async def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # In a partition, closing would wait for bytes to leave that cannot.
            with contextlib.suppress(errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN_S):
                    await client.close()

    async def _connect(self) -> None:
        rounds = 0
        while True:
            client = new_client()
            wait_s = FIRST_WAITS_S[min(rounds, len(FIRST_WAITS_S) - 1)]
            try:
                async with asyncio.timeout(CONNECT_ATTEMPT_S):
                    await self._connect_client(client, wait_s)
                if client.is_connected:  # nats-py returns also when a PING came where it waits for a PONG
                    break
            except (errors.Error, OSError, TimeoutError) as error:
                if self._last_error is None or not isinstance(error, TimeoutError):
                    self._last_error = error  # a round's own time-out says less than what went wrong within it
                rounds += 1
                log.info("NATS at %s is not there yet: %s", self._settings.url, self._last_error)
                with contextlib.suppress(errors.Error, OSError):
                    await client.close()
        self._client = client
        log.info("connected to NATS at %s", self._settings.url)
        self._announce_connected()

    async def _connect_client(self, client: Client, first_wait_s: float) -> None:
        async def lost() -> None:
            if self._client is client:
                self._note_disconnected()

        async def back() -> None:
            if self._client is client:
                self._reconnects.add()
                log.warning("NATS is back after %d attempts", self._attempts)
                self._announce_connected()

        async def closed() -> None:
            if self._client is client and not self._is_closing:
                self._last_error = client.last_error or self._last_error
                self._closed_for_good.set()

        await client.connect(
            self._settings.url,
            name=self._name,
            error_cb=self._note_error,
            disconnected_cb=lost,
            reconnected_cb=back,
            closed_cb=closed,
            connect_timeout=CONNECT_ATTEMPT_S,  # type: ignore[arg-type]  # declared int, takes seconds
            reconnect_time_wait=first_wait_s,  # type: ignore[arg-type]  # used at start only, see `_next_server`
            max_reconnect_attempts=-1,
            reconnect_to_server_handler=self._next_server,
            ping_interval=PING_EVERY_S,  # type: ignore[arg-type]
            max_outstanding_pings=PINGS_MAX,
        )
        for subject, receiver in self._receivers.items():
            self._subscriptions[subject] = await client.subscribe(subject, cb=_coroutine(receiver))

    def _next_server(self, servers: list[Server], _info: Mapping[str, object]) -> tuple[Server | None, float]:
        """Which server to try next and after how long: nats-py's own wait has no jitter."""
        server = servers[self._attempts % len(servers)] if servers else None
        # The first attempt comes soon: most connections are lost because a server restarts or a proxy cut them once.
        wait_s = self._reconnect_wait_s()
        if not self._attempts:
            wait_s *= FIRST_RECONNECT_SHARE
        self._attempts += 1
        self._alive_at_s = time.monotonic()
        return server, wait_s

    def _reconnect_wait_s(self) -> float:
        jitter = random.uniform(1 - RECONNECT_JITTER, 1 + RECONNECT_JITTER)  # noqa: S311 - jitter is no secret
        return self._settings.reconnect_wait_s * jitter

    def _announce_connected(self) -> None:
        self._attempts = 0
        self._last_error = None
        self._up.set()
        for notice in self._on_connected:
            notice()

    def _note_disconnected(self) -> None:
        self._up.clear()
        if not self._is_closing:
            self._attempts = 0
            self._disconnects.add()
            log.warning("the connection to NATS is lost (%s); trying to get back", self._last_error or "no answer")

    async def _note_error(self, error: Exception) -> None:
        self._last_error = error
        log.debug("nats: %s: %s", type(error).__name__, error)


def _coroutine(receiver: Receiver) -> Callable[[Msg], Awaitable[None]]:
    async def receive(message: Msg) -> None:
        receiver(
            Message(subject=message.subject, reply=message.reply, payload=message.data, headers=message.headers or {})
        )

    return receive
