"""What a dead letter is made of: the bytes of the message, unchanged, and headers that say where it died and why.

| header | holds |
|---|---|
| `Dead-Letter-Reason`, `-Kind` | why: `poison` can never be handled, `exhausted` failed too often |
| `Dead-Letter-Stream`, `-Sequence`, `-Subject` | where the message is stored, and what it was published on |
| `Dead-Letter-Consumer`, `-Deliveries` | who gave up, and after how many deliveries |
| `Dead-Letter-Order` | the order it was about; left out if nobody could read it |
| `Dead-Letter-Time` | when, Unix time in ns |
| `Dead-Letter-Msg-Id`, `-Traceparent`, `-Tracestate` | the message's own headers of these names |
| `Dead-Letter-Kept-<name>` | a header that would tell the broker something: `Nats-Rollup` would purge a stream |
| `Dead-Letter-Payload` | `left`: with all this the message would be too large, so it stayed behind, bytes and headers |

All other headers stay as they were (one whose name is none is left out). `Nats-Msg-Id` is
`dead:<stream>:<consumer>:<sequence>:<when it was stored>`, so that a message buried again because its death was not
heard of is one dead letter (within the dedup window), and what a stream made anew holds there is another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

DeadLetterKind = Literal["poison", "exhausted"]

SUBJECT_PREFIX = "deadletters."
REASON_MAX_LENGTH = 1000
_TIME_END_NS = 253_402_300_800 * 1_000_000_000  # the year 10000, which no calendar of ours has

PAYLOAD_LEFT = "left"
LEFT_VALUE_MAX_LENGTH = 1000
"""Of the message's own id and trace, where the rest of it was too large to take along."""

_PREFIX = "Dead-Letter-"
_KEPT_PREFIX = "Dead-Letter-Kept-"
_MESSAGE_ID = "Nats-Msg-Id"
_KEPT_AS = {"nats-msg-id": "Msg-Id", "traceparent": "Traceparent", "tracestate": "Tracestate"}
_RESTORED_AS = {"Traceparent": "traceparent", "Tracestate": "tracestate"}

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_REPLAYED = re.compile(r"replay:\d+:(?P<times>\d+):(?P<original>.*)", re.DOTALL)


class NoDeadLetterError(Exception):
    """There is no dead letter under a number, or what is there is none; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A message in the stream of dead letters that is none. number: its sequence there."""

    number: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Where and why a message was given up. deliveries: how often it was tried. order_id: empty if nobody knows."""

    kind: DeadLetterKind
    reason: str
    stream: str
    sequence: int
    subject: str
    consumer: str
    deliveries: int
    order_id: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One dead letter as it is stored.

    number: its sequence in the stream of dead letters. headers: all of them. payload: None if it was left behind in
    the stream of the message, and is gone from there.
    """

    number: int
    death: Death
    headers: Mapping[str, str]
    payload: bytes | None

    @property
    def is_left_behind(self) -> bool:
        """True if the message must be looked up in its stream."""
        return self.headers.get(f"{_PREFIX}Payload") == PAYLOAD_LEFT

    def with_message(self, headers: Mapping[str, str], payload: bytes | None) -> DeadLetter:
        """This one, with what was left behind."""
        return replace(self, headers={**headers, **self.headers}, payload=payload)

    @property
    def replay_id(self) -> str:
        """The Nats-Msg-Id of its replay: `replay:<where it is stored>:<which replay of the message>:<its first id>`.

        Never the message's own, which the broker may still remember and would not store again. Always the same for one
        stored message, so that a replay repeated after a crash stores nothing twice, and neither do those of the dead
        letters that several consumers made of it: one replay reaches them all. And another one for each further death.
        """
        own_id = self.headers.get(f"{_PREFIX}Msg-Id") or f"{self.death.stream}:{self.death.sequence}"
        times = 1
        if before := _REPLAYED.fullmatch(own_id):
            times, own_id = int(before["times"]) + 1, before["original"]
        return f"replay:{self.death.sequence}:{times}:{own_id}"

    @property
    def original_headers(self) -> dict[str, str]:
        """The headers of the message, as its replay carries them: without those that tell the broker something."""
        restored = {name: value for name, value in self.headers.items() if _is_theirs(name)}
        for name, original in _RESTORED_AS.items():
            value = self.headers.get(f"{_PREFIX}{name}")
            if value:
                restored[original] = value
        return restored


def dead_letter_id(stream: str, consumer: str, sequence: int, stored_ns: int) -> str:
    """The Nats-Msg-Id of the dead letter of one message of one consumer."""
    return f"dead:{stream}:{consumer}:{sequence}:{stored_ns}"


def headers_of(death: Death, original: Mapping[str, str], *, is_left_behind: bool = False) -> dict[str, str]:
    """The headers of a dead letter, but for those of whoever publishes it (Nats-Msg-Id, traceparent)."""
    headers: dict[str, str] = {}
    for name, value in original.items():
        lowered = name.lower()
        if lowered in _KEPT_AS and not (is_left_behind and len(value) > LEFT_VALUE_MAX_LENGTH):
            headers[f"{_PREFIX}{_KEPT_AS[lowered]}"] = value
        elif is_left_behind or not _NAME.fullmatch(name):
            continue
        elif lowered.startswith("nats-"):
            headers[f"{_KEPT_PREFIX}{name}"] = value
        elif _is_theirs(name):
            headers[name] = value
    told = {
        "Reason": death.reason[:REASON_MAX_LENGTH],
        "Kind": death.kind,
        "Stream": death.stream,
        "Sequence": str(death.sequence),
        "Subject": death.subject,
        "Consumer": death.consumer,
        "Deliveries": str(death.deliveries),
        "Order": death.order_id[:REASON_MAX_LENGTH],
        "Time": str(death.at_ns),
        "Payload": PAYLOAD_LEFT if is_left_behind else "",
    }
    return headers | {f"{_PREFIX}{name}": _one_line(value) for name, value in told.items() if value}


def letter_in(number: int, headers: Mapping[str, str], payload: bytes) -> DeadLetter:
    """The dead letter in a stored message; `NoDeadLetterError` if it says too little to be one."""
    told = {name.removeprefix(_PREFIX): value for name, value in headers.items() if name.startswith(_PREFIX)}
    try:
        death = Death(
            kind=_kind_in(told["Kind"]),
            reason=told.get("Reason", ""),
            stream=told["Stream"],
            sequence=int(told["Sequence"]),
            subject=told["Subject"],
            consumer=told["Consumer"],
            deliveries=int(told["Deliveries"]),
            order_id=told.get("Order", ""),
            at_ns=_time_in(told["Time"]),
        )
    except KeyError as missing:
        raise NoDeadLetterError(f"message {number} is no dead letter: it has no {_PREFIX}{missing.args[0]}") from None
    except ValueError as error:
        raise NoDeadLetterError(f"message {number} is no dead letter: {error}") from None
    return DeadLetter(number=number, death=death, headers=headers, payload=payload)


def _time_in(text: str) -> int:
    at_ns = int(text)
    if not 0 <= at_ns < _TIME_END_NS:
        raise ValueError(f"its time is {text[:REASON_MAX_LENGTH]!r}")
    return at_ns


def _kind_in(text: str) -> DeadLetterKind:
    match text:
        case "poison" | "exhausted":
            return text
        case _:
            raise ValueError(f"its kind is {text!r}")


def _is_theirs(name: str) -> bool:
    """True if a header means something only to those who read the message."""
    lowered = name.lower()
    return lowered not in _KEPT_AS and not lowered.startswith(("nats-", "dead-letter-"))


def _one_line(text: str) -> str:
    """A header ends at the end of its line."""
    return _CONTROLS.sub(" ", text).strip()
