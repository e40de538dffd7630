"""A choice of backend that cannot be is refused in the words of the command line, and keeps no secret."""

from __future__ import annotations

import re

import pytest

from harness.environment.choice import BACKENDS, BackendChoice, without_credentials
from harness.errors import UsageError

THEIRS = {"nats_url": "nats://shop:open-sesame@127.0.0.1:4222", "toxiproxy_url": "http://127.0.0.1:8474"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"name": "cloud"}, f"there is no backend 'cloud'; there is: {', '.join(BACKENDS)}"),
        ({"nats_version": "banana"}, "'banana' is no version of nats-server"),
        ({"name": "external"}, "--backend external needs --nats-url and --toxiproxy-url"),
        ({"name": "external", "nats_url": THEIRS["nats_url"]}, "needs --nats-url and --toxiproxy-url"),
        ({"name": "external", **THEIRS, "nats_version": "2.12.4"}, "--nats-version and --tls are not ours to choose"),
        ({"name": "external", **THEIRS, "tls": True}, "write tls:// in --nats-url"),
        ({"name": "cluster", **THEIRS}, "add --backend external, or leave them out with --backend cluster"),
        ({"allowed_faults": frozenset({"kill"})}, "--allow-fault are about somebody's running parts"),
        ({"name": "external", **THEIRS, "nats_url": "http://127.0.0.1:4222"}, "is not nats://host:port"),
        ({"name": "external", **THEIRS, "nats_url": "nats://a:b@h:port"}, "--nats-url 'nats://h:port' is not a URL"),
        ({"name": "external", **THEIRS, "toxiproxy_url": "127.0.0.1:8474"}, "is not http://host:port"),
        ({"name": "external", **THEIRS, "toxiproxy_url": "http://a:b@h:1"}, "'http://h:1' is not http://host:port"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_when_it_is_made(words: dict[str, object], complaint: str) -> None:
    """Before anything is started, and without quoting a password."""
    with pytest.raises(UsageError, match=re.escape(complaint)) as refused:
        BackendChoice(**words)  # type: ignore[arg-type]  # a table of wrong words

    assert "open-sesame" not in str(refused.value)
    assert "a:b" not in str(refused.value)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (BackendChoice(), []),
        (BackendChoice(name="cluster", tls=True), ["--backend", "cluster", "--tls"]),
        (BackendChoice(nats_version="2.12.4", postgres=True), ["--nats-version", "2.12.4", "--postgres"]),
        (
            BackendChoice(name="external", **THEIRS, allowed_faults=frozenset({"partition", "kill"})),  # type: ignore[arg-type]  # as above
            [
                *("--backend", "external", "--nats-url", "nats://127.0.0.1:4222"),
                *("--toxiproxy-url", "http://127.0.0.1:8474", "--allow-fault", "kill", "--allow-fault", "partition"),
            ],
        ),
    ],
)
def test_a_choice_is_said_again_in_the_words_of_the_command_line(choice: BackendChoice, words: list[str]) -> None:
    """What a plan keeps: everything but the secret."""
    assert choice.words() == words
    assert "open-sesame" not in repr(choice)


def test_credentials_are_taken_out_of_a_url() -> None:
    """Whatever stands before the host."""
    assert without_credentials("nats://shop:open-sesame@h:1") == "nats://h:1"
    assert without_credentials("nats://h:1") == "nats://h:1"
