"""`inspect_files`: read files, guess what can be guessed, and gather all numbers about them into an `Inspection`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modelforge.configuration.writing import toml_value
from modelforge.data.audit.audit import Audit
from modelforge.data.sources.read_report import LabelOrigin
from modelforge.data.store.prepared_once import Say, silent
from modelforge.data.structures import Structures
from modelforge.inspection.inspection import (
    Audited,
    FileCount,
    FoundWrong,
    Inspection,
    LabelCount,
    LeftOut,
    OtherKey,
    SubsetCount,
)
from modelforge.inspection.label_names import candidates, looks_like, missing_labels, unread
from modelforge.inspection.measuring import element_counts, energies, forces, periodicity, range_of, stresses
from modelforge.inspection.oddities import oddities
from modelforge.inspection.reading import Look, Request, look, with_guessed_keys
from modelforge.inspection.toml_advice import toml_advice
from modelforge.inspection.unit_guess import AuditedLook, audited, with_fitting_units


def inspect_files(paths: Sequence[str], settings: Sequence[str] = (), *, say: Say = silent) -> Inspection:
    """Everything about some files; `settings` are keys of [dataset], and `say` is told what takes long."""
    request = Request(tuple(paths), tuple(settings), say)
    found = with_fitting_units(request, with_guessed_keys(request, look(request)))
    if not found.look.is_whole:
        whole = look(request, {**found.look.provisional, **found.look.guessed}, whole=True)
        told = replace(found.look, source=whole.source, opened=whole.opened, is_whole=True)
        found = AuditedLook(told, audited(whole), found.before)
    return _inspection(found)


def _inspection(found: AuditedLook) -> Inspection:
    report, original = found.look.opened.report, found.look.opened.structures
    names = Names(report.files)
    structures = replace(original, files=tuple(map(names.short, original.files)))
    return Inspection(
        folder=str(names.folder),
        format=found.look.source.model_dump()["name"],
        files=_files(structures),
        left_out=tuple(LeftOut(names.short(gone.file), gone.reason, gone.count) for gone in report.removals),
        num_structures=len(structures),
        num_atoms=int(structures.offsets[-1]),
        atoms=range_of(np.asarray(structures.num_atoms, dtype=np.float64)),
        elements=element_counts(structures),
        periodicity=periodicity(structures),
        length_unit=next(iter(report.length_units.values()), ""),
        labels=tuple(_label(origin, found.look, structures) for origin in report.origins if origin.label),
        other_keys=_other_keys(found.look),
        how_read=(*found.look.notes, *_undecided(found.look)),
        first_audit=names.audited(found.before) if found.before else None,
        audit=names.audited(found.audit),
        energies=energies(structures),
        forces=forces(structures, found.audit.figures),
        stresses=stresses(structures),
        oddities=oddities(structures, found.audit.figures),
        subsets=_subsets(structures),
        num_groups=len(np.unique(structures.group)),
        toml=toml_advice(found.look, found.audit),
    )


class Names:
    """Short names of files: from the folder on that all are in."""

    def __init__(self, files: Sequence[str]) -> None:
        self.folder = Path(os.path.commonpath([Path(file).absolute().parent for file in files]))

    def short(self, file: str) -> str:
        """A file's name from the common folder on."""
        return os.path.relpath(Path(file).absolute(), self.folder)

    def audited(self, audit: Audit) -> Audited:
        """What the audit says, with short names."""
        findings = (FoundWrong(found.severity, found.key, self._shortened(found.message)) for found in audit.findings)
        return Audited(tuple(map(self._shortened, audit.lines())), tuple(findings))

    def _shortened(self, text: str) -> str:
        return text.replace(f"{self.folder}{os.sep}", "")


def _files(structures: Structures) -> tuple[FileCount, ...]:
    counts = np.bincount(structures.file, minlength=len(structures.files)).tolist()
    return tuple(FileCount(name, count) for name, count in zip(structures.files, counts, strict=True))


def _label(origin: LabelOrigin, found: Look, structures: Structures) -> LabelCount:
    unit, _, remark = origin.unit.partition(" (stated in the file)")
    return LabelCount(
        origin.label,
        origin.option,
        origin.key,
        found.opened.report.home(origin),
        unit + remark,
        _unit_from(origin, found),
        int(structures.has(origin.label).sum()) if origin.num_carriers else 0,
        origin.num_incomplete,
    )


def _unit_from(origin: LabelOrigin, found: Look) -> str:
    if "(stated in the file)" in origin.unit:
        return "file"
    options = {"energy": ("energy_unit",), "forces": ("forces_unit", "energy_unit", "length_unit")}
    named = options.get(origin.label, (f"{origin.label}_unit", "energy_unit", "length_unit"))
    if any(option in found.guessed or option in found.provisional for option in named):
        return "guess"
    return "set" if any(option in found.source.model_fields_set for option in named) else "default"


def _other_keys(look: Look) -> tuple[OtherKey, ...]:
    report, found = look.opened.report, []
    for (name, per_atom), count in unread(report, look.used_keys).items():
        option = looks_like(name, per_atom=per_atom)
        toml = f"{option} = {toml_value(name)}" if option in look.key_options else ""
        found.append(OtherKey(name, report.homes[per_atom], count, toml))
    return tuple(sorted(found, key=lambda other: not other.toml))


def _undecided(found: Look) -> tuple[str, ...]:
    """Labels that are nowhere, with the keys that may be them."""
    report = found.opened.report
    sentences = []
    for label in missing_labels(report, found.key_options):
        fitting = candidates(report, label, found.used_keys)
        if fitting:
            keys = " or ".join(map(repr, fitting))
            sentences.append(f"{label} is not read: {keys} may be it; choose with --set {next(iter(fitting.values()))}=...")
        elif label in ("energy", "forces"):
            what = "an energy" if label == "energy" else label
            sentences.append(f"no structure has {what}, and no key looks like it")
    return tuple(sentences)


def _subsets(structures: Structures) -> tuple[SubsetCount, ...]:
    counts = np.bincount(structures.subset, minlength=len(structures.subset_names)).tolist()
    return tuple(SubsetCount(name, count) for name, count in zip(structures.subset_names, counts, strict=True))
