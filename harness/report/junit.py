"""`junit.xml`: one test case for each invariant and each fault, for CI systems that read nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED

if TYPE_CHECKING:
    from pathlib import Path

    from harness.run import Outcome

FILE_NAME = "junit.xml"
_FINDINGS_TOLD = 20


def write_junit(outcome: Outcome) -> Path:
    """Write `junit.xml`: VIOLATED is a failure, UNKNOWN an error (it was not shown), HOLDS passes."""
    judgement = outcome.judgement
    suite = ET.Element(
        "testsuite",
        name=f"stormproof.{outcome.plan.experiment}",
        tests=str(len(judgement.verdicts) + len(judgement.faults)),
        failures=str(sum(verdict.state is VIOLATED for verdict in judgement.verdicts)),
        errors=str(sum(verdict.state is UNKNOWN for verdict in judgement.verdicts) + len(judgement.vacuous)),
        time=str(round(sum(outcome.timings.values()), 3)),
    )
    for verdict in judgement.verdicts:
        name = f"{verdict.invariant} {verdict.name}"
        case = ET.SubElement(suite, "testcase", classname=outcome.plan.experiment, name=name)
        if verdict.state is HOLDS:
            continue
        element = ET.SubElement(case, "failure" if verdict.state is VIOLATED else "error", message=verdict.reason)
        element.text = "\n".join(finding.sentence() for finding in verdict.findings[:_FINDINGS_TOLD])
    for window in judgement.faults:
        what = f"fault {window.name} on {window.target}"
        case = ET.SubElement(suite, "testcase", classname=outcome.plan.experiment, name=f"{what} #{window.number}")
        vacuous = [sentence for sentence in judgement.vacuous if sentence.startswith(what)]
        if vacuous and (window.healed_ns is None or not window.verified or 0 in (window.grip, window.touched)):
            ET.SubElement(case, "error", message=vacuous[0])
    path = outcome.directory.path / FILE_NAME
    ET.indent(suite)
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    return path
