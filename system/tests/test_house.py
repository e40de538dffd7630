"""What the words in README say is what the code says; and nobody imports more than they need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from system import topology
from system.events import PaymentStatus
from system.orders import openapi

PACKAGE = Path(__file__).parents[1]
STREAMS = (topology.ORDERS, topology.PAYMENTS, topology.DEAD_LETTERS)


def table_column(heading: str, column: int) -> list[str]:
    """The cells of one column of the README table whose first heading this is, without backticks."""
    rows = (PACKAGE / "README.md").read_text(encoding="utf-8").split(f"\n| {heading} |", 1)[1].splitlines()[2:]
    cells = []
    for row in rows:
        if not row.startswith("|"):
            break
        cells.append(row.strip("|").split("|")[column].strip())
    return cells


def test_the_readme_lists_every_environment_variable_with_its_default() -> None:
    """No more, no less, and the defaults are those of the code."""
    source = (PACKAGE / "settings.py").read_text(encoding="utf-8")
    defaults = dict(re.findall(r'variable\(environ, "([A-Z_]+)", "([^"]*)"', source))
    optional = re.findall(r'(?:environ\.get\(|optional\(environ, )"([A-Z_]+)"', source)
    names = {*defaults, *optional, "OTEL_SERVICE_NAME"}

    listed = [cell.strip("`") for cell in table_column("variable", 0)]
    said = dict(zip(listed, table_column("variable", 2), strict=True))

    assert sorted(listed) == sorted(names)
    assert {name: value.strip("`") for name, value in said.items() if defaults.get(name)} == {
        name: value for name, value in defaults.items() if value
    }


def test_the_readme_names_the_streams_subjects_and_consumers_of_the_code() -> None:
    """The names that stay."""
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    consumers = (*topology.payment_processors(1, 1), *topology.projections(1))

    for name in (
        *(stream.name for stream in STREAMS),
        *(stream.subject for stream in STREAMS),
        topology.ORDERS_CREATED,
        topology.ORDERS_CANCELLED,
        topology.PAYMENTS_PROCESSED,
        topology.order_created_id("<order_id>"),
        topology.order_cancelled_id("<order_id>"),
        *(topology.payment_processed_id("<order_id>", status) for status in PaymentStatus),
        *(consumer.name for consumer in consumers),
    ):
        assert f"`{name}`" in readme


def test_the_readme_names_every_path_of_the_http_interface_of_orders() -> None:
    """As the OpenAPI document does, with the method."""
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")

    for path, operations in openapi.document()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path.replace('{order_id}', '{id}')}`" in readme


def test_no_two_consumers_and_no_two_messages_share_a_name() -> None:
    """Two durable consumers of one name would take each other's messages; two ids that meet would be one message."""
    consumers = (*topology.payment_processors(1, 1), *topology.projections(1))
    charged_as = {status: topology.payment_processed_id("o1", status) for status in PaymentStatus}
    ids = {topology.order_created_id("o1"), topology.order_cancelled_id("o1"), *charged_as.values()}

    assert len({(consumer.stream, consumer.name) for consumer in consumers}) == len(consumers) == 4
    # PAID and DECLINED are two ends of one charge: whichever is announced first is the one.
    assert charged_as[PaymentStatus.PAID] == charged_as[PaymentStatus.DECLINED]
    assert len(ids) == 5


def test_every_consumer_reads_a_subject_of_its_stream_and_may_fill_the_hands_of_every_replica() -> None:
    """Or it would wait for ever for messages that are stored elsewhere, or for acks that somebody else owes."""
    subjects = {stream.name: stream.subject.removesuffix(">") for stream in STREAMS}

    for consumer in topology.projections(7):
        assert consumer.ack_pending_max == topology.PREFETCH * topology.REPLICAS
    for consumer in topology.payment_processors(7, 100):
        assert consumer.ack_pending_max == 100 * topology.REPLICAS
    for consumer in (*topology.payment_processors(7, 100), *topology.projections(7)):
        assert consumer.subject.startswith(subjects[consumer.stream])
        assert consumer.ack_wait_s == 7


@pytest.mark.parametrize(
    ("service", "absent"),
    [
        ("orders", ("aiohttp", "prometheus_client", "grpc_tools", "asyncpg", "sqlite3")),
        ("payments", ("aiohttp", "prometheus_client", "grpc_tools", "asyncpg", "sqlite3")),
        ("provider", ("aiohttp", "prometheus_client", "nats", "asyncpg", "sqlite3")),
    ],
)
def test_a_service_imports_nothing_it_does_not_need(service: str, absent: tuple[str, ...]) -> None:
    """Start time is spent on imports."""
    probe = f"import sys, system.{service}.service; print([name for name in {absent} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )

    assert result.stdout.strip() == "[]"


def test_the_system_imports_none_of_its_neighbours() -> None:
    """It runs with everything else deleted."""
    neighbours = re.compile(r"^\s*(?:from|import) (?:harness|chaos|scenarios|loadtests)\b", re.MULTILINE)

    assert [str(path) for path in PACKAGE.rglob("*.py") if neighbours.search(path.read_text(encoding="utf-8"))] == []


def test_nats_is_imported_in_one_module() -> None:
    """Everybody else goes through it."""
    importing = re.compile(r"^\s*(?:from|import) nats\b", re.MULTILINE)

    assert [path.name for path in PACKAGE.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))] == [
        "client.py"
    ]
