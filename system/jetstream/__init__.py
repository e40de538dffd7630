"""JetStream as the services use it: a connection, streams and consumers, publishing with acks, pulling with handlers.

`nats` itself is imported in `client.py` only.
"""

from system.jetstream.connection import ConnectError, Connection, Message, NotConnectedError, RequestError
from system.jetstream.consumer import Consumer, Handler
from system.jetstream.delivery import Delivery
from system.jetstream.publisher import PubAck, Publisher, PublishRefusedError, PublishUnknownError
from system.jetstream.streams import (
    ConsumerSpec,
    StreamSpec,
    TopologyError,
    ensure_consumer,
    ensure_stream,
    stored_payload,
)

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
    "PublishUnknownError",
    "Publisher",
    "RequestError",
    "StreamSpec",
    "TopologyError",
    "ensure_consumer",
    "ensure_stream",
    "stored_payload",
]
