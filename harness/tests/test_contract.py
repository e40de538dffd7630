"""The machine contract: what `--json` prints validates against the JSON Schemas in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from harness import cli

SCHEMAS = Path(__file__).resolve().parents[1] / "report" / "schemas"


def validate(document: object, name: str) -> None:
    """Raise when the document is not what the schema promises."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_a_command_prints_one_document_that_its_schema_knows(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the document, the whole document, and nothing else."""
    assert cli.main([command, "--json"]) == 0

    validate(json.loads(capsys.readouterr().out), command)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.name)
def test_every_schema_is_a_schema(path: Path) -> None:
    """A schema with a typing error would accept everything."""
    schema = json.loads(path.read_text(encoding="utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"], "a contract without required fields promises nothing"
