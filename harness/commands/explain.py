"""`stormproof explain RUN KEY`: the story of one operation across all channels, its trace, and what is held against it.

It tells what is on record and rules on nothing: the exit code is 0 when there is a story, whatever it says.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from harness.commands.conducting import print_json
from harness.errors import UsageError
from harness.evidence.store import FILE_NAME, Evidence
from harness.invariants.judgement import judge
from harness.plan import read_plan
from harness.records import Operation, Span
from harness.report.printable import printable
from harness.report.story import tell_story
from harness.report.tables import near
from harness.report.terminal import print_findings, print_story
from harness.runs import find_run
from harness.system_under_test import configured_system
from harness.traces import Trace, trace_from

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SCHEMA = "stormproof.story/1"
LINES_MAX = 10_000
"""A story has at most so many lines, and a drawn trace so many spans; the story says how much is left out."""

TRACES_MAX = 20
"""So many operations of one key have their traces drawn."""

KEYS_NAMED = 3
_KEY_LENGTH_MAX = 80


async def execute(options: argparse.Namespace) -> int:
    """Tell the story, as a table or with `--json` as a document. Raises UsageError when no channel knows the key."""
    directory = find_run(options.runs_dir, options.run)
    # An argument that is not UTF-8 has surrogates, which neither DuckDB nor a terminal takes; evidence holds none.
    key = options.key.encode("utf-8", "replace").decode("utf-8")
    with Evidence.open(directory.path / FILE_NAME) as evidence:
        story = tell_story(evidence, key, lines_max=LINES_MAX)
        if not story.lines:
            raise UsageError(_nobody_knows(evidence, key))
        if options.json:
            lines = [asdict(line) for line in story.lines]
            run = str(directory.path)
            print_json({"schema": SCHEMA, "run": run, "key": key, "lines": lines, "left_out": story.left_out})
            return 0
        system = configured_system()
        read_plan(directory.path).ensure_of(system)
        print_story(story, sys.stdout)
        for tree in _trees(evidence, key):
            print(f"\n{tree}")
        print()
        print_findings(judge(evidence, system.invariants), key, sys.stdout)
        print(f"run: {near(directory.path)}")
    return 0


def _nobody_knows(evidence: Evidence, key: str) -> str:
    """Say so, and name the keys most like it that do exist."""
    rows = evidence.query(
        """
        SELECT key FROM (
            SELECT key FROM operations UNION SELECT key FROM states UNION SELECT key FROM ledger
            UNION SELECT key FROM messages WHERE key IS NOT NULL UNION SELECT key FROM spans WHERE key IS NOT NULL
        ) ORDER BY jaro_winkler_similarity(key, $1) DESC, key LIMIT $2
        """,
        [key, KEYS_NAMED],
    )
    asked = f"no channel of this run knows the key '{printable(key, _KEY_LENGTH_MAX)}'"
    if not rows:
        return f"{asked}, nor any other: nothing was placed"
    known = ", ".join(printable(each, _KEY_LENGTH_MAX) for (each,) in rows)
    return f"{asked}; it knows, for example: {known}"


def _trees(evidence: Evidence, key: str) -> Iterator[str]:
    """Draw the trace of each operation of the key that has spans, the earliest first."""
    for operation in evidence.select(Operation, "key = $1 ORDER BY began_ns, number LIMIT $2", [key, TRACES_MAX]):
        spans = evidence.select(
            Span,
            "key = $1 OR trace_id = $2::UUID ORDER BY began_ns, seq LIMIT $3",
            [key, operation.trace_id, LINES_MAX],
        )
        if spans:
            yield _shown(trace_from(operation, spans)).tree()
    operations = evidence.count("SELECT count(*) FROM operations WHERE key = $1", [key])
    if operations > TRACES_MAX:
        yield f"the traces of {operations - TRACES_MAX:,} more operations are not drawn"


def _shown(trace: Trace) -> Trace:
    """Return the trace with texts that print: a span's name must not look like another line of the tree."""
    return Trace(
        operation=replace(trace.operation, kind=printable(trace.operation.kind), key=printable(trace.operation.key)),
        spans=tuple(
            replace(span, service=printable(span.service), name=printable(span.name), kind=printable(span.kind))
            for span in trace.spans
        ),
    )
