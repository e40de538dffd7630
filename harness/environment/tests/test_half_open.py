"""A client that comes back leaves no connection open on its way."""

from __future__ import annotations

import asyncio
import gc
import warnings

from nats.aio.client import Client

from harness.environment.nats.half_open import hang_up

INFO = b'INFO {"server_id":"fake","version":"2.15.1","max_payload":1048576,"headers":true}\r\n'


class FakeServer:
    """Serves the first client, hangs up on those that come next before they are served, and serves the last one."""

    def __init__(self, *, hung_up_on: int) -> None:
        self.arrived = 0
        self.first_gone = asyncio.Event()
        self._hung_up_on = hung_up_on

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.arrived += 1
        number = self.arrived
        try:
            if 1 < number <= 1 + self._hung_up_on:
                return
            writer.write(INFO)
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                    if number == 1:
                        return  # let in, and then the server dies
        finally:
            writer.close()


async def test_a_connection_that_broke_in_its_handshake_is_closed() -> None:
    """nats-py by itself leaves three of them to the garbage collector here."""
    fake = FakeServer(hung_up_on=3)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    client, back = Client(), asyncio.Event()

    async def on_error(_error: Exception) -> None:
        hang_up(client)

    async def on_back() -> None:
        back.set()

    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always", ResourceWarning)
        await client.connect(
            f"nats://{host}:{port}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.01,  # type: ignore[arg-type]  # annotated as whole seconds, and slept as it is
            error_cb=on_error,
            reconnected_cb=on_back,
        )
        async with asyncio.timeout(10):
            await back.wait()
        await client.close()
        server.close()
        await server.wait_closed()
        gc.collect()

    assert fake.arrived == 5
    assert [str(each.message) for each in complaints] == []
