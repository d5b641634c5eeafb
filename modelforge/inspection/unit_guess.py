"""Other units and signs than those that labels were read with, where the audit says that others fit, and does so again
once they are read that way."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelforge.data.audit.audit import Audit
from modelforge.data.audit.figures import Figures
from modelforge.data.audit.findings import Finding
from modelforge.data.audited import audit_opened
from modelforge.data.sources.read_report import ReadReport
from modelforge.data.store.opening import cache_folder
from modelforge.errors import UserError
from modelforge.inspection.reading import PROVISIONAL, Look, Request, look

SETTING = re.compile(r'dataset\.(energy_unit|length_unit|forces_unit|stress_unit) = "([^"]+)"')
OTHER_KEY = {"dataset.forces_key": ("forces_key", "gradient_key"), "dataset.virial_key": ("stress_key", "virial_key")}
"""For findings about a sign, or a division by the volume, under which option the same key would be right."""


@dataclass(frozen=True, eq=False)
class AuditedLook:
    """Files as they were read, with the audit; the one before it is that of the units that the first reading had."""

    look: Look
    audit: Audit
    before: Audit | None = None


def audited(found: Look) -> Audit:
    """The audit of all structures that were read."""
    chosen = np.arange(len(found.opened.structures))
    return audit_opened(found.opened, chosen, cache=cache_folder(found.source.cache_folder))


def with_fitting_units(request: Request, first: Look) -> AuditedLook:
    """Read again with other units if they mend what the audit finds; stop at the first reading where none do."""
    before = audited(first)
    must = bool(first.provisional)
    repairs = _repairs(before.findings, first, request.given, take_notes=must)
    trial = _tried(request, {**first.guessed, **repairs}, without=_replaced(repairs)) if repairs else None
    if trial is not None:
        after = audited(trial)
        if _num_unit_findings(after, notes=must) < _num_unit_findings(before, notes=must):
            notes = (*first.notes, _guess_in_words(repairs, after.figures))
            told = replace(trial, notes=notes, fitted=frozenset(repairs))
            return AuditedLook(told, after, before)
    if must:
        units = " and ".join(unit for key, unit in PROVISIONAL.items() if key in first.provisional)
        note = f"{units} are provisional: no file states the unit{_evidence(before.figures)}; set what is right"
        return AuditedLook(replace(first, notes=(*first.notes, note)), before)
    return AuditedLook(first, before)


def _repairs(findings: Sequence[Finding], first: Look, given: frozenset[str], *, take_notes: bool) -> dict[str, str]:
    """What the first remedy of each finding sets."""
    found: dict[str, str] = {}
    for finding in findings:
        if finding.severity == "stop" or take_notes:
            found |= dict(SETTING.findall(finding.message.split(", or ")[0]))
            found |= _other_key(finding, first.opened.report)
    units = {**first.provisional, **found}
    if found.get("forces_unit") == f"{units.get('energy_unit', 'eV')}/{units.get('length_unit', 'angstrom')}":
        del found["forces_unit"]  # it follows
    return found if found and given.isdisjoint((*found, *_replaced(found))) else {}


def _other_key(finding: Finding, report: ReadReport) -> dict[str, str]:
    if finding.key == "dataset.stress_convention":
        return {"stress_convention": "compression_positive"}
    now, then = OTHER_KEY.get(finding.key, ("", ""))
    origin = report.origin(now)
    return {then: origin.key} if origin is not None and origin.num_carriers else {}


def _replaced(repairs: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(now for now, then in OTHER_KEY.values() if then in repairs)


def _tried(request: Request, guessed: Mapping[str, str], *, without: Sequence[str]) -> Look | None:
    try:
        return look(request, {key: value for key, value in guessed.items() if key not in without})
    except UserError:  # files that state another unit, for one
        return None


def _num_unit_findings(found: Audit, *, notes: bool) -> int:
    about = re.compile(r"dataset\.\w+_(unit|key|convention)$")
    return sum(1 for finding in found.findings if about.match(finding.key) and (notes or finding.severity == "stop"))


def _guess_in_words(repairs: Mapping[str, str], figures: Figures) -> str:
    settings = " and ".join(f'{key} = "{value}"' for key, value in repairs.items())
    return f"a guess from the numbers: {settings} fits{_evidence(figures)}; everything here is read so"


def _evidence(figures: Figures) -> str:
    parts = []
    if figures.slope is not None:
        parts.append(f"slope of the energy against the forces {figures.slope:.2f}")
    if figures.energy_ratio is not None:
        parts.append(f"energies {figures.energy_ratio:.3f} times those of free atoms")
    if figures.stiffness_ratio is not None:
        parts.append(f"bonds to hydrogen {figures.stiffness_ratio:.2f} times as stiff as usual")
    return f" ({', '.join(parts)})" if parts else " (the data cannot tell)"
