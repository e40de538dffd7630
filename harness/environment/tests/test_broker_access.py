"""A way to the broker: made up afresh for each run, and silent about its password."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.environment.nats.access import BrokerAccess, fresh_access
from harness.errors import PlanError


def test_no_two_runs_have_one_password() -> None:
    """A password that leaks is worth nothing in the next run."""
    passwords = {fresh_access(["127.0.0.1:4222"]).password for _ in range(100)}

    assert len(passwords) == 100
    assert all(password is not None and len(password) >= 32 for password in passwords)


def test_the_password_is_in_no_repr_and_no_url() -> None:
    """Whoever prints it by accident prints nothing."""
    access = fresh_access(["127.0.0.1:4222", "127.0.0.1:4223"])

    assert access.password is not None
    assert access.password not in repr(access) + str(access) + access.url
    assert access.url == "nats://127.0.0.1:4222,nats://127.0.0.1:4223"


def test_the_same_credentials_lead_through_proxies() -> None:
    """Other addresses, nothing else; the scheme stays, or TLS would be lost on the way."""
    ca_file = Path("ca.pem")
    access = fresh_access(["127.0.0.1:4222"], ca_file=ca_file)

    through = access.at(["127.0.0.1:5", "127.0.0.1:6"])

    assert through.urls == ("tls://127.0.0.1:5", "tls://127.0.0.1:6")
    assert (through.user, through.password, through.ca_file) == (access.user, access.password, ca_file)
    assert through.is_tls


def test_a_process_is_told_by_variables_that_our_services_and_the_nats_command_know() -> None:
    """Only what there is: a broker that lets everybody in has no user."""
    assert BrokerAccess(urls=("nats://h:1",)).variables() == {"NATS_URL": "nats://h:1"}
    access = fresh_access(["h:1"], ca_file=Path("ca.pem"))
    assert access.variables() == {
        "NATS_URL": "tls://h:1",
        "NATS_USER": access.user,
        "NATS_PASSWORD": access.password,
        "NATS_TLS_CA_FILE": "ca.pem",
        "NATS_CA": "ca.pem",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"urls": ()},
        {"urls": ("nats://u:p@h:1",)},
        {"urls": ("nats://h:1",), "user": "u"},
        {"urls": ("nats://h:1",), "password": "p"},
    ],
)
def test_half_a_way_in_is_refused_at_birth(wrong: dict[str, object]) -> None:
    """A URL with credentials too: it would be printed."""
    with pytest.raises(PlanError):
        BrokerAccess(**wrong)  # type: ignore[arg-type]  # a table of wrong values
