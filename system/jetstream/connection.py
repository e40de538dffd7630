"""The connection to NATS.

Promises: an endless try to get back, with jitter; a silent partition is noticed within `ping_every_s` x (`PINGS_MAX`
+ 1); an attempt to reconnect that gets no answer is given up after `CONNECT_ATTEMPT_S`; while there is no connection
nothing is accepted for sending, so nothing waits in a buffer that nobody watches, but for answers to deliveries, which
may say that they want to wait, for so long and in so great a number. Should nats-py close for good (it does so on most
errors that a server reports) or stop trying, a new client takes over with the same subscriptions. At start, a server
that does not let us in is an error at once; later it is asked again, because it let us in before.

Does not: promise that what was sent arrived. That is what `Publisher` and acks are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from system.jetstream.client import NatsClient, Server, Subscription, errors
from system.jetstream.errors import ConnectError, NotConnectedError, RequestError
from system.jetstream.login import Login
from system.jetstream.wire import FrameWriter, Receiver, header_block, publish_frame
from system.metrics import Metrics
from system.settings import NatsSettings

log = logging.getLogger(__name__)

CONNECT_ATTEMPT_S = 2.0
FIRST_WAITS_S = (0.03, 0.1, 0.25, 0.5)
"""Waits between attempts at start: the broker may be starting beside us, and start time matters."""
PINGS_MAX = 2
CLOSE_WITHIN_S = 1.0
WATCH_EVERY_S = 1.0
STUCK_AFTER_S = 15.0
"""Without a connection and without an attempt at one for so long, nats-py is taken to have given up silently."""
RECONNECT_JITTER = 0.25
FIRST_RECONNECT_SHARE = 0.25
UNSENT_MAX_BYTES = 1024 * 1024
"""With so much waiting to leave, nothing more is accepted: the server takes it slowly, or not at all."""
KEPT_AGAIN_S = 0.1
"""How soon frames that met a congestion are tried again."""
KEPT_MAX = 16_384
"""Frames that wait for a connection at once: more deliveries than any process has in hand."""


class Connection:
    """One process's connection, open from `async with` until its end; `open` connects and `keep` keeps it."""

    def __init__(self, settings: NatsSettings, *, name: str, metrics: Metrics) -> None:
        self._settings = settings
        self._login = Login(settings)
        self._name = name
        self._client: NatsClient | None = None
        self._writer = FrameWriter(self._write)
        self._kept: list[tuple[float, bytes]] = []
        self._trying_kept: asyncio.TimerHandle | None = None
        self._receivers: dict[str, Receiver] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._on_connected: list[Callable[[], None]] = []
        self._up = asyncio.Event()
        self._is_up = self._was_up = False
        self._is_congested = False
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
        return self._is_up and self._client is not None and self._client.is_connected

    @property
    def payload_max_bytes(self) -> int:
        """The largest message, headers and payload, that the server takes."""
        return self._client.max_payload if self._client is not None else 0

    async def wait_connected(self) -> None:
        """Return once there is a connection; the caller sets the bound."""
        await self._up.wait()

    def on_connected(self, notice: Callable[[], None]) -> None:
        """Call `notice` after every connection that was made, when subscriptions are in place again."""
        self._on_connected.append(notice)

    async def open(self) -> None:
        """Connect; `ConnectError` after `connect_within_s`, and at once if the server does not let us in."""
        try:
            async with asyncio.timeout(self._settings.connect_within_s):
                await self._connect()
        except TimeoutError:
            reason = self._last_error or "no answer"
            raise ConnectError(
                f"NATS at {self._login.servers} could not be reached within {self._settings.connect_within_s:g} s: "
                f"{reason}"
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
        """Pass what arrives on `subject` to `receiver`, across reconnects."""
        self._receivers[subject] = receiver
        if self._client is not None:
            self._subscriptions[subject] = await self._client.listen(subject, receiver)

    async def drain(self, subject: str, *, within_s: float) -> None:
        """End a subscription; what the server had sent is received before this returns, or `within_s` is over."""
        self._receivers.pop(subject, None)
        subscription = self._subscriptions.pop(subject, None)
        if subscription is None or self._client is None or not self.is_connected:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._client.end(subscription)
        except (errors.Error, TimeoutError) as error:
            log.info("the subscription to %s ended without a drain: %s %s", subject, type(error).__name__, error)

    async def send(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand a message to the connection; `NotConnectedError` if it certainly did not leave."""
        block = header_block(headers) if headers else b""
        self.post(publish_frame(subject, payload, reply=reply, block=block))

    def post(self, frame: bytes) -> None:
        """Hand over a frame (see `wire.py`), without waiting; `NotConnectedError` if it certainly does not leave."""
        if not self._is_up:
            raise NotConnectedError("there is no connection to NATS")
        if self._writer.waiting_bytes > UNSENT_MAX_BYTES or (self._is_congested and self._stays_congested()):
            raise NotConnectedError(f"more than {UNSENT_MAX_BYTES} bytes are waiting to leave already")
        self._writer.put(frame)

    def post_or_keep(self, frame: bytes, *, within_s: float) -> None:
        """Hand over a frame, or keep it until there is a connection again, but no longer than `within_s`."""
        try:
            self.post(frame)
        except NotConnectedError:
            if len(self._kept) < KEPT_MAX:
                self._kept.append((time.monotonic() + within_s, frame))
                if self._is_up and self._trying_kept is None:  # congested: nobody will tell when that is over
                    self._trying_kept = asyncio.get_running_loop().call_later(KEPT_AGAIN_S, self._try_kept)
            else:
                log.info("a frame is dropped: %d are waiting for a connection", KEPT_MAX)

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
            async with asyncio.timeout(within_s):
                self._writer.flush()
                await self._client.flush(timeout=within_s)  # type: ignore[arg-type]  # declared int, takes seconds
        except (errors.Error, TimeoutError) as error:
            raise RequestError(f"cannot flush: {error}") from None

    async def close(self) -> None:
        """Close; nothing is received or sent any more."""
        self._is_closing = True
        if self._trying_kept is not None:
            self._trying_kept.cancel()
        if self.is_connected:
            self._writer.flush()
        self._note_down()
        await self._close_client()

    def _is_stuck(self) -> bool:
        return time.monotonic() - self._alive_at_s > STUCK_AFTER_S + 2 * self._settings.reconnect_wait_s

    async def _replace_client(self) -> None:
        self._note_down()
        await self._close_client()
        self._closed_for_good.clear()
        await asyncio.sleep(self._reconnect_wait_s())
        await self._connect()
        self._reconnects.add()

    async def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _connect(self) -> None:
        rounds = 0
        while True:
            options = await self._login_options()
            client = NatsClient(must_be_tls=self._login.must_be_tls, on_lost=self._note_lost)
            wait_s = FIRST_WAITS_S[min(rounds, len(FIRST_WAITS_S) - 1)]
            try:
                async with asyncio.timeout(CONNECT_ATTEMPT_S):
                    await self._connect_client(client, options, wait_s)
                if client.is_connected:
                    break
            except ConnectError:
                await _close(client)
                raise
            except (errors.Error, OSError, TimeoutError) as error:
                await _close(client)
                if self._last_error is None or not isinstance(error, TimeoutError):
                    self._last_error = error  # a round's own time-out says less than what went wrong within it
            rounds += 1
            log.info("NATS at %s is not there yet: %s", self._login.servers, self._last_error)
        self._client = client
        log.info("connected to NATS at %s", self._login.servers)
        self._announce_connected()

    async def _login_options(self) -> dict[str, Any]:
        """What lets us in. Should its files be gone later, they are waited for."""
        while True:
            try:
                return self._login.options()
            except ConnectError as error:
                if not self._was_up:
                    raise
                log.warning("no login: %s", error)
                self._last_error = error
            await asyncio.sleep(self._reconnect_wait_s())

    async def _connect_client(self, client: NatsClient, options: dict[str, Any], first_wait_s: float) -> None:
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

        async def failed(error: Exception) -> None:
            self._note_error(error)

        await client.connect(
            self._settings.servers,
            name=self._name,
            error_cb=failed,
            disconnected_cb=lost,
            reconnected_cb=back,
            closed_cb=closed,
            connect_timeout=CONNECT_ATTEMPT_S,  # type: ignore[arg-type]  # declared int, takes seconds
            reconnect_time_wait=first_wait_s,  # type: ignore[arg-type]  # used at start only, see `_next_server`
            max_reconnect_attempts=-1,
            reconnect_to_server_handler=self._next_server,
            ping_interval=self._settings.ping_every_s,  # type: ignore[arg-type]  # declared int, takes seconds
            max_outstanding_pings=PINGS_MAX,
            **options,
        )
        for subject, receiver in self._receivers.items():
            self._subscriptions[subject] = await client.listen(subject, receiver)

    def _note_error(self, error: Exception) -> None:
        self._last_error = error
        log.debug("nats: %s: %s", type(error).__name__, error)
        refusal = self._login.refusal(error)
        if refusal is not None and not self._was_up:
            raise ConnectError(f"NATS at {self._login.servers} is there, but {refusal}")
        if refusal is not None:
            log.warning("NATS at %s is there, but %s; asking again", self._login.servers, refusal)

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
        self._is_up = self._was_up = True
        self._is_congested = False
        self._up.set()
        self._post_kept()
        for notice in self._on_connected:
            notice()

    def _try_kept(self) -> None:
        self._trying_kept = None
        if self._is_up:
            self._post_kept()

    def _post_kept(self) -> None:
        """Send what waited for a connection and is not too old."""
        kept, self._kept = self._kept, []
        now_s = time.monotonic()
        late = 0
        for until_s, frame in kept:
            if until_s > now_s:
                self.post_or_keep(frame, within_s=until_s - now_s)
            else:
                late += 1
        if late:
            log.info("%d answers to deliveries were not sent: no connection in time", late)

    def _write(self, data: bytes) -> None:
        """What `FrameWriter` calls, once per tick."""
        client = self._client
        if client is None or not client.write(data):
            # nats-py knows that the connection is gone, and we shall be told: as lost as what is in the socket.
            log.debug("%d bytes are lost with the connection", len(data))
        else:
            self._is_congested = client.unsent_bytes > UNSENT_MAX_BYTES

    def _stays_congested(self) -> bool:
        self._is_congested = self._client is not None and self._client.unsent_bytes > UNSENT_MAX_BYTES
        return self._is_congested

    def _note_lost(self, client: NatsClient) -> None:
        if client is self._client:
            self._note_down()

    def _note_down(self) -> None:
        self._is_up = False
        self._up.clear()
        self._writer.discard()

    def _note_disconnected(self) -> None:
        self._note_down()
        if not self._is_closing:
            self._attempts = 0
            self._disconnects.add()
            log.warning("the connection to NATS is lost (%s); trying to get back", self._last_error or "no answer")


async def _close(client: NatsClient) -> None:
    # In a partition, closing would wait for bytes to leave that cannot.
    with contextlib.suppress(errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_WITHIN_S):
            await client.close()
