"""What the words in README say is what the code says; and nobody imports more than they need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from system import topology

PACKAGE = Path(__file__).parents[1]


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
    defaults = dict(re.findall(r'_value\(environ, "([A-Z_]+)", "([^"]*)"', source))
    names = set(defaults) | set(re.findall(r'environ\.get\("([A-Z_]+)"', source)) | {"OTEL_SERVICE_NAME"}

    listed = [cell.strip("`") for cell in table_column("variable", 0)]
    said = dict(zip(listed, table_column("variable", 2), strict=True))

    assert sorted(listed) == sorted(names)
    assert {name: value.strip("`") for name, value in said.items() if defaults.get(name)} == {
        name: value for name, value in defaults.items() if value
    }


def test_the_readme_names_the_streams_subjects_and_consumers_of_the_code() -> None:
    """The names that stay."""
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    consumers = (topology.payment_processor(1), *topology.projections(1))

    for name in (
        topology.ORDERS.name,
        topology.ORDERS.subject,
        topology.PAYMENTS.name,
        topology.PAYMENTS.subject,
        topology.ORDERS_CREATED,
        topology.PAYMENTS_PROCESSED,
        topology.order_created_id("<order_id>"),
        topology.payment_processed_id("<order_id>"),
        *(consumer.name for consumer in consumers),
    ):
        assert f"`{name}`" in readme


@pytest.mark.parametrize(
    ("service", "absent"),
    [
        ("orders", ("aiohttp", "prometheus_client", "grpc_tools")),
        ("payments", ("aiohttp", "prometheus_client", "sqlite3")),
        ("provider", ("aiohttp", "prometheus_client", "nats", "sqlite3")),
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
