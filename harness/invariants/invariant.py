"""An invariant: a claim, the evidence it needs, and the query that looks for counterexamples.

The verdict rules live here and only here, so that no invariant can get them wrong:

1. A *safety* finding (a bad thing was seen) is VIOLATED, whatever evidence is missing.
2. A *liveness* finding (a good thing was not seen) is VIOLATED when every needed channel is complete and every fault
   is healed; otherwise the good thing may have happened unseen, and the verdict is UNKNOWN.
3. Without findings, nothing examined or an incomplete channel is UNKNOWN. Silence is not success.
4. An invariant that crashes is UNKNOWN.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.invariants.verdict import HOLDS, UNKNOWN, VIOLATED, Finding, Ruling, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.evidence.store import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What an invariant saw when it looked at evidence.

    examined: how many things the claim was tested on.
    safety: bad things that were seen. liveness: good things that were not seen.
    """

    examined: int
    safety: tuple[Finding, ...] = ()
    liveness: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """A claim about a system under test.

    id: short and stable (`I2`). name: what tests and reports call it (`no double charge`).
    needs: names of the channels without which the claim cannot be shown to hold.
    look: the query; a pure function of evidence.
    """

    id: str
    name: str
    claim: str
    needs: tuple[str, ...]
    look: Callable[[Evidence], Examination]

    def judge(self, evidence: Evidence) -> Verdict:
        """Rule on the claim; never raises."""
        try:
            examination = self.look(evidence)
            gaps = _gaps(evidence, self.needs)
            unhealed = _unhealed(evidence)
            return self._rule(examination, gaps, unhealed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the edge around each invariant: a crash is UNKNOWN, never green
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = (
                f"the invariant itself crashed: {type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            )
            return self._verdict(UNKNOWN, 0, reason)

    def _rule(self, examination: Examination, gaps: list[str], unhealed: list[str]) -> Verdict:
        if examination.safety:
            findings = examination.safety + (() if gaps or unhealed else examination.liveness)
            return self._verdict(VIOLATED, examination.examined, findings[0].sentence(), findings)
        if examination.liveness:
            findings = examination.liveness
            if gaps or unhealed:
                reason = f"{len(findings)} not seen, but evidence is missing: {'; '.join(gaps + unhealed)}"
                return self._verdict(UNKNOWN, examination.examined, reason, findings)
            return self._verdict(VIOLATED, examination.examined, findings[0].sentence(), findings)
        if gaps:
            return self._verdict(UNKNOWN, examination.examined, "; ".join(gaps))
        if examination.examined == 0:
            return self._verdict(UNKNOWN, 0, "nothing was examined: there is no evidence to judge")
        return self._verdict(HOLDS, examination.examined, "")

    def _verdict(self, state: Ruling, examined: int, reason: str, findings: tuple[Finding, ...] = ()) -> Verdict:
        return Verdict(
            invariant=self.id,
            name=self.name,
            claim=self.claim,
            state=state,
            examined=examined,
            reason=reason,
            findings=findings,
        )


def _gaps(evidence: Evidence, needs: tuple[str, ...]) -> list[str]:
    known = {
        name: (complete, why) for name, complete, why in evidence.query("SELECT name, complete, why FROM channels")
    }
    gaps = []
    for name in needs:
        complete, why = known.get(name, (False, "it was not collected"))
        if not complete:
            gaps.append(f"channel {name} is incomplete: {why}")
    return gaps


def _unhealed(evidence: Evidence) -> list[str]:
    rows = evidence.query("SELECT name, target FROM faults WHERE healed_ns IS NULL ORDER BY number")
    return [f"fault {name} on {target} never healed" for name, target in rows]
