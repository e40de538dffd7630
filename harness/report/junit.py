"""`junit.xml`: one test case for each invariant, each fault and each other reason why a run proves nothing.

For CI systems that read nothing else. Text from outside is made to print, for XML knows no control characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from harness.invariants.judgement import vacuity_of
from harness.invariants.verdict import HOLDS, VIOLATED
from harness.report.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

    from harness.run import Outcome

FILE_NAME = "junit.xml"
_FINDINGS_TOLD = 20


def write_junit(outcome: Outcome) -> Path:
    """Write `junit.xml`: VIOLATED is a failure, UNKNOWN an error (it was not shown), HOLDS passes."""
    judgement = outcome.judgement
    suite = ET.Element("testsuite", name=printable(f"stormproof.{outcome.plan.experiment}"))
    for verdict in judgement.verdicts:
        case = _case(suite, outcome, f"{verdict.invariant} {verdict.name}")
        if verdict.state is HOLDS:
            continue
        what = "failure" if verdict.state is VIOLATED else "error"
        element = ET.SubElement(case, what, message=printable(verdict.reason))
        element.text = "\n".join(printable(finding.sentence()) for finding in verdict.findings[:_FINDINGS_TOLD])
    of_faults = set()
    for window in judgement.faults:
        case = _case(suite, outcome, f"fault {window.name} on {window.target} #{window.number}")
        if vacuity := vacuity_of(window):
            of_faults.add(vacuity)
            ET.SubElement(case, "error", message=printable(vacuity))
    for number, sentence in enumerate((each for each in judgement.vacuous if each not in of_faults), start=1):
        case = _case(suite, outcome, f"the run proves something #{number}")
        ET.SubElement(case, "error", message=printable(sentence))
    for counted, element_name in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        suite.set(counted, str(sum(1 for _ in suite.iter(element_name))))
    suite.set("time", str(round(sum(outcome.timings.values()), 3)))
    path = outcome.directory.path / FILE_NAME
    ET.indent(suite)
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    return path


def _case(suite: ET.Element, outcome: Outcome, name: str) -> ET.Element:
    experiment = printable(outcome.plan.experiment)
    return ET.SubElement(suite, "testcase", classname=experiment, name=printable(name))
