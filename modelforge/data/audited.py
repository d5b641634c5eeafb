"""The audit of all sets of a run: what stops it, what is said, what is kept for large data."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from modelforge.atoms.unit_names import factor_of
from modelforge.atoms.units import (
    ENERGY_IN_EV,
    FORCE_IN_EV_PER_ANGSTROM,
    LENGTH_IN_ANGSTROM,
    STRESS_IN_EV_PER_CUBIC_ANGSTROM,
)
from modelforge.data.audit.audit import Audit, audit
from modelforge.data.audit.declared_units import DeclaredUnits
from modelforge.data.audit.figures import Figures
from modelforge.data.audit.findings import Finding
from modelforge.data.audit.sets import SetsAudit
from modelforge.data.sources.read_report import ReadReport
from modelforge.data.store.opening import OpenedData
from modelforge.data.structures import Integers
from modelforge.errors import UserError
from modelforge.files import write_text

AnyUnit = TypeVar("AnyUnit", bound=str)
IMPOSSIBLE = "dataset.path"  # the key of findings that no experiment can want, such as two atoms in one place
VERSION = 2  # of the audit: results of another version are not used


@dataclass(frozen=True)
class AuditedSets:
    """The audits of the data and of each test file, and of the sets against each other."""

    data: Audit
    tests: Mapping[str, Audit]
    between: SetsAudit

    def findings(self) -> list[Finding]:
        """Everything that was found, with the name of the test set where it is in one."""
        of_tests = [
            Finding(finding.severity, finding.key, f"in the set {name!r}: {finding.message}")
            for name, audited in self.tests.items()
            for finding in audited.findings
        ]
        return [*self.data.findings, *of_tests, *self.between.findings]

    def stop_if_found(self, action: str) -> None:
        """Labels that contradict each other stop the run unless the experiment says otherwise; impossible data always do."""
        stops = [finding for finding in self.findings() if finding.severity == "stop"]
        impossible = [finding for finding in stops if finding.key == IMPOSSIBLE]
        told = [f"{finding.key}: {finding.message}" for finding in (stops if action == "stop" else impossible)]
        if told and len(told) > len(impossible):
            told.append('if the data are right as they are, set dataset.audit = "report"')
        if told:
            raise UserError("\n".join(told))

    def to_json(self) -> dict[str, object]:
        """All figures and findings."""
        return {
            "data": self.data.figures.to_json(),
            "tests": {name: audited.figures.to_json() for name, audited in self.tests.items()},
            "overlaps": self.between.to_json(),
            "findings": [asdict(finding) for finding in self.findings()],
        }


def audit_opened(opened: OpenedData, chosen: Integers, *, cache: Path) -> Audit:
    """The audit of some structures; that of mapped data, which takes longer, is kept beside them."""
    declared = declared_units(opened.report)
    if opened.columns is None:
        return audit(opened.structures, chosen, declared=declared)
    digest = hashlib.blake2b(np.sort(chosen).tobytes(), digest_size=8).hexdigest()
    kept = cache / "audits" / f"{opened.content_hash}-{digest}-{VERSION}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(kept.read_text(encoding="utf-8"))
        if told["declared"] == asdict(declared):
            return Audit(Figures(**told["figures"]), tuple(Finding(**finding) for finding in told["findings"]))
    found = audit(opened.structures, chosen, declared=declared)
    told = {
        "declared": asdict(declared),
        "figures": found.figures.to_json(),
        "findings": [asdict(finding) for finding in found.findings],
    }
    with suppress(OSError):  # then it is done again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(told))
    return found


def declared_units(report: ReadReport) -> DeclaredUnits:
    """The units that the labels were converted from, by the names that an experiment gives them."""
    units = {origin.label: origin.unit.partition(" (")[0] for origin in report.origins}
    return DeclaredUnits(
        energy=_named(units.get("energy", ""), "energy", ENERGY_IN_EV) or "eV",
        length=_named(report.length_unit.partition(" (")[0], "length", LENGTH_IN_ANGSTROM) or "angstrom",
        forces=_named(units.get("forces", ""), "forces", FORCE_IN_EV_PER_ANGSTROM),
        stress=_named(units.get("stress", ""), "stress", STRESS_IN_EV_PER_CUBIC_ANGSTROM),
    )


def _named(text: str, label: str, table: Mapping[AnyUnit, float]) -> AnyUnit | None:
    """The name in a table of the unit that a text spells."""
    try:
        factor = factor_of(text, label) if text else 0.0
    except ValueError:
        return None
    return next((name for name, value in table.items() if np.isclose(value, factor, rtol=1e-6, atol=0.0)), None)
