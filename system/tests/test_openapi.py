"""The OpenAPI document of orders: complete, true to the code, and held against the running service by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from system.database import DatabaseError
from system.jetstream import PublishRefusedError, PublishUnavailableError, PublishUnknownError
from system.orders import openapi
from system.orders.intake import ConflictError, NoSuchOrderError, NothingToCancelError
from system.orders.recent import TooManyRecentError
from system.tests.parts import Broker, ask
from system.tests.shop import Shop, running
from system.tests.test_orders_api import GOOD, Desk, post

EXAMPLES_MAX = 50
SCHEMATHESIS_WITHIN_S = 170

DOCUMENT: dict[str, Any] = openapi.document()


def schema(name: str) -> Draft202012Validator:
    """A validator of one of the document's schemas."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def answered(path: str) -> dict[str, Any]:
    """What the document says that the one operation on a path answers, by status."""
    (operation,) = DOCUMENT["paths"][path].values()
    responses: dict[str, Any] = operation["responses"]
    return responses


def test_every_schema_is_a_schema() -> None:
    """JSON Schema 2020-12, which is what OpenAPI 3.1 speaks."""
    for each in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(each)


@pytest.mark.parametrize(
    "failure",
    [
        None,
        ConflictError(),
        NoSuchOrderError(),
        NothingToCancelError(),
        TooManyRecentError("many"),
        DatabaseError("away"),
        PublishRefusedError("full"),
        PublishUnavailableError("busy"),
        PublishUnknownError("no ack"),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("path", ["/orders", "/orders/{order_id}/cancel"])
async def test_whatever_is_answered_is_in_the_document(path: str, failure: Exception | None) -> None:
    """Every status, with a body that its schema takes and the headers that it promises."""
    cannot_be = (path == "/orders" and isinstance(failure, NoSuchOrderError | NothingToCancelError)) or (
        path != "/orders" and isinstance(failure, ConflictError | TooManyRecentError)
    )
    if cannot_be:
        return
    response = await post(Desk(failure), json.dumps(GOOD).encode(), path=path.replace("{order_id}", "o1"))

    said = answered(path)[str(response.status)]
    reference = said["content"][response.content_type]["schema"]["$ref"]
    schema(reference.rpartition("/")[2]).validate(json.loads(response.body))
    assert {name.lower() for name in said.get("headers", {})} <= {name for name, _ in response.headers}


@pytest.mark.parametrize(
    ("order", "is_good"),
    [
        (GOOD, True),
        ({**GOOD, "currency": "CHF", "more": [1]}, True),
        ({**GOOD, "total_amount": 1_000_000}, True),
        ({**GOOD, "total_amount": 0.01}, True),
        ({**GOOD, "total_amount": 1_000_000.5}, False),
        ({**GOOD, "total_amount": 0}, False),
        ({**GOOD, "total_amount": 1.001}, False),
        ({**GOOD, "total_amount": "1"}, False),
        ({**GOOD, "currency": "EUR\n"}, False),
        ({**GOOD, "currency": "eur"}, False),
        ({**GOOD, "currency": None}, False),
        ({**GOOD, "customer_id": "c" * 64}, True),
        ({**GOOD, "customer_id": "c" * 65}, False),
        ({**GOOD, "customer_id": "\U0001f6d2" * 64}, True),
        ({**GOOD, "customer_id": ""}, False),
        ({**GOOD, "customer_id": "a\0"}, False),
        ({"customer_id": "c"}, False),
        ([], False),
    ],
    ids=repr,
)
async def test_the_document_takes_the_orders_that_the_service_takes(order: object, is_good: bool) -> None:
    """No more, no less."""
    assert schema("NewOrder").is_valid(order) is is_good
    assert ((await post(Desk(), json.dumps(order).encode())).status == 202) is is_good


def schemathesis(shop: Shop, document: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What schemathesis says of the running service, held against a document."""
    program = Path(sys.executable).parent / "schemathesis"
    return subprocess.run(
        [program, "run", document, "--checks", "all", "--seed", "7", "--no-color", *options],
        cwd=shop.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=SCHEMATHESIS_WITHIN_S,
    )


@pytest.mark.timeout(240)
async def test_schemathesis_finds_nothing_that_the_document_does_not_say(broker: Broker, tmp_path: Path) -> None:
    """Good and bad requests, links from one to the next: every status, header and body, of the whole running shop."""
    async with running(Shop(tmp_path, broker.url)) as shop:
        address = f"http://127.0.0.1:{shop.ports['orders']}"
        served = await ask(shop.ports["orders"], "GET", "/openapi.json")
        assert (served.status, json.loads(served.body)) == (200, DOCUMENT)

        truth = schemathesis(shop, f"{address}/openapi.json", "--max-examples", str(EXAMPLES_MAX))
        assert truth.returncode == 0, truth.stdout[-8000:] + truth.stderr[-2000:]

        lie = json.loads(served.body)
        del lie["paths"]["/orders"]["post"]["responses"]["422"]
        (tmp_path / "lie.json").write_text(json.dumps(lie))
        found = schemathesis(shop, "lie.json", "--url", address, "--include-path", "/orders", "--phases", "coverage")
        assert found.returncode == 1, "it must find what is not true, or it proves nothing"
        assert "Undocumented status code" in found.stdout, found.stdout
