"""JetStream as the services use it: a connection, streams and consumers, publishing with acks, pulling with handlers.

`nats` itself is imported in `client.py` only.
"""

from system.jetstream.connection import Connection
from system.jetstream.consumer import Consumer, Handler
from system.jetstream.delivery import Delivery
from system.jetstream.errors import ConnectError, NotConnectedError, RequestError
from system.jetstream.publisher import (
    PubAck,
    Publisher,
    PublishRefusedError,
    PublishUnavailableError,
    PublishUnknownError,
)
from system.jetstream.streams import (
    ConsumerSpec,
    StreamSpec,
    TopologyError,
    acknowledged,
    ensure_consumer,
    ensure_stream,
    last_stored,
    stored_payload,
    stored_since,
)
from system.jetstream.wire import Message

__all__ = [
    "ConnectError",
    "Connection",
    "Consumer",
    "ConsumerSpec",
    "Delivery",
    "Handler",
    "Message",
    "NotConnectedError",
    "PubAck",
    "PublishRefusedError",
    "PublishUnavailableError",
    "PublishUnknownError",
    "Publisher",
    "RequestError",
    "StreamSpec",
    "TopologyError",
    "acknowledged",
    "ensure_consumer",
    "ensure_stream",
    "last_stored",
    "stored_payload",
    "stored_since",
]
