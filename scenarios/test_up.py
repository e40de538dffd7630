"""`stormproof up` as a person uses it: its owner gets in, and what it keeps, prints and shows holds no secret.

So a whole run directory, reports included, can go into a bug report.
"""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest

from harness.environment.nats.access import BrokerAccess
from scenarios.command import left_over, start_stormproof
from scenarios.shop.producer import producer

pytestmark = pytest.mark.usefixtures("toxiproxy_binary")

SECRET_VARIABLES = {"NATS_PASSWORD", "PROVIDER_ADMIN_TOKEN"}
ORDER = json.dumps({"customer_id": "somebody", "total_amount": 12.5}).encode()


@pytest.mark.parametrize(
    ("options", "secrets_known"), [((), 2), (("--postgres", "--tls"), 3)], ids=["default", "postgres-tls"]
)
def test_its_owner_gets_in_and_nobody_else_is_told_how(
    options: tuple[str, ...], secrets_known: int, tmp_path: Path
) -> None:
    """No secret in logs, plan, evidence or reports, none on the terminal, none in a command line."""
    with start_stormproof("up", *options, "--json", "--runs-dir", str(tmp_path)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        up = json.loads(line)
        run = Path(up["run"])
        place(up["orders"])
        secrets = secrets_of(run.name)
        credentials = readable_by_us_alone(Path(up["nats_credentials"]))
        asyncio.run(get_in(credentials))
        commands = [argument for each in of_this_run(run.name) for argument in each.cmdline()]
        process.send_signal(signal.SIGINT)
        rest, progress = process.communicate(timeout=60)

    assert credentials["NATS_PASSWORD"] in secrets
    assert len(secrets) == secrets_known
    assert process.returncode == 0, progress
    assert {"evidence.duckdb", "report.html", "verdict.json", "plan.json"} <= {path.name for path in run.iterdir()}
    for secret in secrets:
        assert secret not in line + rest + progress
        assert not [command for command in commands if secret in command]
        assert not [path for path in run.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert left_over(run.name) == []


def place(orders: str) -> None:
    """Place an order, so that every channel has something to tell."""
    request = Request(f"{orders}/orders", data=ORDER, headers={"Content-Type": "application/json"})  # noqa: S310 - our own
    with urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        assert answer.status == 202


def of_this_run(run: str) -> list[psutil.Process]:
    """Every process that carries the run's label."""
    return [each for each in psutil.process_iter() if run in variables_of(each).get("STORMPROOF_OWNER", "")]


def variables_of(process: psutil.Process) -> dict[str, str]:
    """What a process was told; nothing when it is not ours to ask."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def secrets_of(run: str) -> set[str]:
    """Everything that a process of the run was told and that opens something."""
    told = [variables_of(each) for each in of_this_run(run)]
    in_urls = {
        unquote(urlsplit(value).password or "") for variables in told for value in variables.values() if "://" in value
    }
    named = {value for variables in told for name, value in variables.items() if name in SECRET_VARIABLES}
    return (named | in_urls) - {""}


def readable_by_us_alone(file: Path) -> dict[str, str]:
    """The variables in the file that `up` names, which nobody else may read."""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


async def get_in(credentials: dict[str, str]) -> None:
    """Connect as its owner would."""
    access = BrokerAccess(
        urls=tuple(credentials["NATS_URL"].split(",")),
        user=credentials["NATS_USER"],
        password=credentials["NATS_PASSWORD"],
        ca_file=Path(credentials["NATS_TLS_CA_FILE"]) if "NATS_TLS_CA_FILE" in credentials else None,
    )
    async with producer(access):
        pass
