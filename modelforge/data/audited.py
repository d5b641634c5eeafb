"""The audit of all sets of a run: what stops it, what is said, what is kept for large data."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from modelforge.data.audit.duplicates import Selection
from modelforge.data.audit.figures import Figures
from modelforge.data.audit.findings import Finding
from modelforge.data.audit.sets import Overlap, SetsAudit, audit_sets
from modelforge.data.sources.read_report import ReadReport
from modelforge.data.store.opening import OpenedData
from modelforge.data.structures import Integers
from modelforge.errors import UserError
from modelforge.files import write_text

AnyUnit = TypeVar("AnyUnit", bound=str)
IMPOSSIBLE = "dataset.path"  # the key of findings that no experiment can want, such as two atoms in one place
OWN_KEYS = re.compile(r"\bdataset\.((?:energy|forces|gradient|length|stress|virial)_\w+)")  # of each source; others of all
MOST_FILES = 10  # of a source that are audited one by one
VERSION = 4  # of the audit: results of another version are not used


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

    def to_json(self) -> dict[str, object]:
        """All figures and findings."""
        return {
            "data": self.data.figures.to_json(),
            "tests": {name: audited.figures.to_json() for name, audited in self.tests.items()},
            "overlaps": self.between.to_json(),
            "findings": [asdict(finding) for finding in self.findings()],
        }


def stop_if_found(findings: Sequence[Finding], action: str) -> None:
    """Labels that contradict each other stop the run unless the experiment says otherwise; impossible data always do."""
    stops = [finding for finding in findings if finding.severity == "stop"]
    impossible = [finding for finding in stops if finding.key == IMPOSSIBLE]
    told = [f"{finding.key}: {finding.message}" for finding in (stops if action == "stop" else impossible)]
    if told and len(told) > len(impossible):
        told.append('if the data are right as they are, set dataset.audit = "report"')
    if told:
        raise UserError("\n".join(told))


def audit_opened(opened: OpenedData, chosen: Integers, *, cache: Path) -> Audit:
    """The audit of some structures; that of mapped data, which takes longer, is kept.

    Figures are of all of them. Findings are of each source, and of each file where there are a few: units that are wrong in
    one of them would drown in the others.
    """
    kept = cache / "audits" / f"{_key(opened, chosen)}.json"
    if opened.columns is not None and (told := _read(kept)) is not None:
        with suppress(KeyError, TypeError):
            return Audit(Figures(**told["figures"]), _findings(told))
    parts = list(_parts(opened, chosen))
    whole = audit(opened.structures, chosen, declared=declared_units(opened.report, parts[0].table))
    if len(parts) > 1:
        whole = Audit(whole.figures, tuple(finding for part in parts for finding in _findings_of(opened, part)))
    if opened.columns is not None:
        _keep(kept, {"figures": whole.figures.to_json(), "findings": [asdict(finding) for finding in whole.findings]})
    return whole


class _PartOfData(NamedTuple):
    """Structures that were read alike."""

    name: str
    table: str  # below `[dataset]`, where the keys stand by which they were read
    members: Integers


def _parts(opened: OpenedData, chosen: Integers) -> Iterator[_PartOfData]:
    """The sources of the chosen structures, or their files where a source has a few."""
    tables = opened.report.tables or ("",) * len(opened.structures.files)
    file_of = opened.structures.file[chosen]
    for table in dict.fromkeys(tables):
        files = [number for number, of in enumerate(tables) if of == table]
        together = len(files) > MOST_FILES
        for own in [files] if together else [[number] for number in files]:
            members = chosen[np.isin(file_of, own)]
            if len(members):
                name = table.removeprefix("sources.").removesuffix(".") if together else opened.structures.files[own[0]]
                yield _PartOfData(name, table, members)


def _findings_of(opened: OpenedData, part: _PartOfData) -> Iterator[Finding]:
    """What is wrong with a part, in the words of its own table."""
    own = rf"dataset.{part.table}\1"
    for finding in audit(opened.structures, part.members, declared=declared_units(opened.report, part.table)).findings:
        key, message = (OWN_KEYS.sub(own, text) for text in (finding.key, finding.message))
        yield Finding(finding.severity, key, message if part.name in message else f"in {part.name}: {message}")


def audit_overlaps(
    opened: OpenedData, training: Integers, others: Mapping[str, tuple[OpenedData, Integers]], *, cache: Path
) -> SetsAudit:
    """The audit of the sets against each other; that of mapped data is kept."""
    keys = [_key(opened, training), *(f"{name} {_key(some, members)}" for name, (some, members) in others.items())]
    kept = cache / "audits" / f"{hashlib.blake2b(' '.join(keys).encode(), digest_size=16).hexdigest()}.json"
    if opened.columns is not None and (told := _read(kept)) is not None:
        with suppress(KeyError, TypeError):
            return SetsAudit({name: Overlap(**counts) for name, counts in told["overlaps"].items()}, _findings(told))
    selections = {name: Selection(some.structures, members) for name, (some, members) in others.items()}
    found = audit_sets(Selection(opened.structures, training), selections)
    if opened.columns is not None:
        _keep(kept, {"overlaps": found.to_json(), "findings": [asdict(finding) for finding in found.findings]})
    return found


def _key(opened: OpenedData, chosen: Integers) -> str:
    """What an audit depends on; names of files and units are in its words."""
    report = opened.report
    told = f"{VERSION} {opened.content_hash} {opened.structures.files} {report.origins} {report.tables} {report.length_units}"
    return hashlib.blake2b(told.encode() + np.sort(chosen).tobytes(), digest_size=16).hexdigest()


def _read(path: Path) -> Mapping[str, Any] | None:
    with suppress(OSError, ValueError):
        told: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return told
    return None


def _keep(path: Path, told: Mapping[str, object]) -> None:
    with suppress(OSError):  # then it is done again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(told))


def _findings(told: Mapping[str, Any]) -> tuple[Finding, ...]:
    return tuple(Finding(**finding) for finding in told["findings"])


def declared_units(report: ReadReport, table: str = "") -> DeclaredUnits:
    """The units that the labels of a source were converted from, by the names that an experiment gives them."""
    units = {origin.label: origin.unit.partition(" (")[0] for origin in report.origins if origin.option.startswith(table)}
    units["length"] = report.length_units.get(table, "").partition(" (")[0]
    return DeclaredUnits(
        energy=_named(units.get("energy", ""), "energy", ENERGY_IN_EV) or "eV",
        length=_named(units["length"], "length", LENGTH_IN_ANGSTROM) or "angstrom",
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
