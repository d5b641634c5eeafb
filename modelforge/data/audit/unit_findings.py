"""From measurements to findings about units, signs and energies per atom, with the remedy in terms of `[dataset]`."""

from math import exp, log

from modelforge.atoms.units import BOHR, HARTREE, KJ_PER_MOL
from modelforge.data.audit.declared_units import DeclaredUnits
from modelforge.data.audit.energy_forces import Slope
from modelforge.data.audit.file_units import (
    FileUnits,
    Measurements,
    explanations,
    follows,
    is_settable,
)
from modelforge.data.audit.findings import Finding, Severity

MIN_COMPOSITIONS = 3  # that must agree before total energies alone can stop a run
MAX_TOTALS_SPREAD = 0.02  # relative, over compositions: pseudopotentials leave a ratio that depends on the composition
MIN_STOPPING_BONDS = 50
MIN_STOPPING_PAIRS = 30  # for a slope within the next factor: one of 5,000 random subsets, of 20 structures, gave 0.46
FAR_OFF = 3.0  # a slope beyond this factor is no chance; a stiffness without an explanation is worth a note

KCAL_PER_MOL = 4.184 * KJ_PER_MOL
RARITY = 0.003  # by which a factor further down in the table must be nearer
FACTORS = {  # from common to rare
    "eV per hartree": HARTREE,
    "kcal/mol per eV": 1 / KCAL_PER_MOL,
    "kJ/mol per eV": 1 / KJ_PER_MOL,
    "bohr per angstrom": 1 / BOHR,
    "angstrom per nm": 10.0,
    "eV/angstrom per hartree/bohr": HARTREE / BOHR,
    "eV/bohr per hartree/angstrom": HARTREE * BOHR,
    "eV per rydberg": HARTREE / 2,
    "kJ per kcal": 4.184,
    "kcal/mol per hartree": HARTREE / KCAL_PER_MOL,
    "kJ/mol/nm per eV/angstrom": 10 / KJ_PER_MOL,
    "kJ/mol/nm per kcal/mol/angstrom": 41.84,
    "kcal/mol/bohr per eV/angstrom": BOHR / KCAL_PER_MOL,
    "kJ/mol/bohr per eV/angstrom": BOHR / KJ_PER_MOL,
    "kcal/mol bohr per eV angstrom": 1 / KCAL_PER_MOL / BOHR,
    "kJ/mol bohr per eV angstrom": 1 / KJ_PER_MOL / BOHR,
    "eV nm per hartree angstrom": HARTREE / 10,
    "eV angstrom per hartree nm": HARTREE * 10,
    "kcal/mol/nm per eV/angstrom": 10 / KCAL_PER_MOL,
    "kcal/mol angstrom per eV nm": 0.1 / KCAL_PER_MOL,
    "bohr per nm": 10 / BOHR,
    "meV per eV": 1000.0,
}


def unit_findings(measured: Measurements, declared: DeclaredUnits) -> tuple[Finding, ...]:
    """What is wrong with signs and units, empty where all that was measured is as it should be."""
    return (*_sign_findings(measured), *_factor_findings(measured, declared))


def _sign_findings(measured: Measurements) -> tuple[Finding, ...]:
    slope, bonds = measured.slope, measured.stiffness
    bonds_push = bonds is not None and bonds.ratio < 0
    if slope is not None and slope.value < 0 and (bonds is None or bonds_push):
        found = f"energies rise where the forces say that they fall ({slope.origin} is {slope.value:.3g}, expected 1)"
        return (Finding("stop", "dataset.forces_key", f"{found}; {GRADIENTS}"),)
    if slope is not None and slope.value < 0:
        found = f"energies rise where the forces say that they fall ({slope.origin} is {slope.value:.3g}, expected 1)"
        remedy = "bonds to hydrogen pull as they should, so it is the energies whose sign is wrong: negate them in the file"
        return (Finding("stop", "dataset.energy_key", f"{found}; {remedy}"),)
    if bonds is not None and bonds_push:
        found = f"stretched bonds to hydrogen push outwards instead of pulling (over {bonds.num_bonds} bonds)"
        severity: Severity = "stop" if slope is None and bonds.num_bonds >= MIN_STOPPING_BONDS else "note"
        return (Finding(severity, "dataset.forces_key", f"{found}; {GRADIENTS}"),)
    return ()


GRADIENTS = "these are gradients, not forces: name them in dataset.gradient_key instead of dataset.forces_key"


def _factor_findings(measured: Measurements, declared: DeclaredUnits) -> tuple[Finding, ...]:
    """What is wrong with magnitudes."""
    found = explanations(measured, declared)
    if found and found[0] == _as_declared(declared):
        return ()
    if measured.totals is not None and not _totals_count(measured, explained=bool(found)):
        return _factor_findings(measured.without_totals(), declared)
    evidence = "; ".join(_evidence(measured, is_explained=bool(found)))
    if not found:
        return _unexplained(measured, evidence)
    remedies = ", or ".join(dict.fromkeys(_remedy(units, declared) for units in found[:3]))
    return (Finding(_severity(measured), _key(found[0], declared), f"{evidence}: {remedies}"),)


def _as_declared(declared: DeclaredUnits) -> FileUnits:
    return FileUnits(declared.energy, declared.length, declared.forces_name, False)


def _totals_count(measured: Measurements, *, explained: bool) -> bool:
    """Whether total energies may speak: they are no pseudopotential's, whose ratio to free atoms can be any number."""
    slope, totals = measured.slope, measured.totals
    assert totals is not None
    if totals.spread > MAX_TOTALS_SPREAD and totals.num_compositions > 1:
        return False
    return explained or (slope is not None and slope.is_off and not _is_off(totals.ratio / slope.value, slope.error))


def _severity(measured: Measurements) -> Severity:
    if measured.length_is_off:
        return "stop"
    if measured.slope is not None and measured.slope_is_off:
        return _slope_severity(measured.slope)
    bonds, totals = measured.stiffness, measured.totals
    if bonds is not None and measured.stiffness_is_off:
        return "stop" if bonds.num_bonds >= MIN_STOPPING_BONDS or totals is not None else "note"
    return "stop" if totals is not None and totals.num_compositions >= MIN_COMPOSITIONS else "note"


def _slope_severity(slope: Slope) -> Severity:
    return "stop" if slope.num >= MIN_STOPPING_PAIRS or _is_off(slope.value, FAR_OFF) else "note"


def _evidence(measured: Measurements, *, is_explained: bool) -> list[str]:
    """What was measured and is not as it should be."""
    sentences = []
    slope, bonds, totals = measured.slope, measured.stiffness, measured.totals
    if slope is not None and measured.slope_is_off:
        # The total energies know a factor to 1 %, the slope to 20 %.
        factor = totals.ratio if totals is not None and not _is_off(totals.ratio / slope.value, slope.error) else slope.value
        name = "" if is_explained else _named(factor, slope.error)
        sentences.append(f"the energy changes {abs(slope.value):.4g} times as much as the forces say ({slope.origin}){name}")
    if measured.length_is_off:
        sentences.append(f"distances between neighbours are {measured.length_ratio:.3g} times the sum of covalent radii")
    if bonds is not None and measured.stiffness_is_off:
        sentences.append(f"{bonds.num_bonds} bonds to hydrogen are {abs(bonds.ratio):.3g} times as stiff as usual")
    if totals is not None and measured.totals_are_off:
        count = "one composition" if totals.num_compositions == 1 else f"{totals.num_compositions} compositions"
        sentences.append(f"energies are {totals.ratio:.4g} times those of the free atoms ({count})")
    return sentences


def _named(value: float, error: float) -> str:
    """The factor nearest to a value or its inverse, by its name, if one is within the error; common ones are preferred."""
    size = exp(abs(log(abs(value))))
    ranked = [(abs(log(size / factor)) + RARITY * rank, name) for rank, (name, factor) in enumerate(FACTORS.items())]
    name = min(ranked)[1]
    if _is_off(size / FACTORS[name], error):
        return ""
    number = f"{FACTORS[name]:.5g}" if abs(value) > 1 else f"1/{FACTORS[name]:.5g}"
    return f"; {number} is {name}" if abs(value) > 1 else f"; {number} is the inverse of {name}"


def _remedy(units: FileUnits, declared: DeclaredUnits) -> str:
    """What to set, so that the file is read with these units."""
    settings = []
    if units.energy != declared.energy:
        settings.append(f'dataset.energy_unit = "{units.energy}"')
    if units.length != declared.length:
        settings.append(f'dataset.length_unit = "{units.length}"')
    if _must_set_forces(units, declared):
        if not is_settable(units.forces):
            return f"the forces seem to be in {units.forces}: convert them in the file" + _and_set(settings)
        settings.append(f'dataset.forces_unit = "{units.forces}"')
    per_atom = "the energies seem to be per atom: name the key of the total energy, or multiply by the number of atoms"
    return per_atom + _and_set(settings) if units.energy_per_atom else "set " + _listed(settings)


def _and_set(settings: list[str]) -> str:
    return ", and set " + _listed(settings) if settings else ""


def _listed(settings: list[str]) -> str:
    return " and ".join([", ".join(settings[:-1]), settings[-1]]) if len(settings) > 1 else settings[0]


def _must_set_forces(units: FileUnits, declared: DeclaredUnits) -> bool:
    return not follows(units) if declared.forces is None else units.forces != declared.forces


def _key(units: FileUnits, declared: DeclaredUnits) -> str:
    if units.energy_per_atom:
        return "dataset.energy_key"
    if units.energy != declared.energy:
        return "dataset.energy_unit"
    return "dataset.length_unit" if units.length != declared.length else "dataset.forces_unit"


def _unexplained(measured: Measurements, evidence: str) -> tuple[Finding, ...]:
    """Something is wrong, but no pair of mistakes explains it."""
    if not evidence:
        return ()
    remedy = "no unit that [dataset] knows explains it: compare the labels with the output of the code that made them"
    bonds = measured.stiffness
    if measured.slope is not None and measured.slope_is_off:
        return (Finding(_slope_severity(measured.slope), "dataset.energy_unit", f"{evidence}: {remedy}"),)
    if bonds is not None and _is_off(bonds.ratio, FAR_OFF):
        return (Finding("note", "dataset.forces_unit", f"{evidence}: {remedy}"),)
    return ()


def _is_off(ratio: float, tolerance: float) -> bool:
    return abs(log(abs(ratio))) > log(tolerance)
