"""Whether stresses belong to energies and cells: sign, unit and the division by the volume.

Cells of one ensemble that differ by a small strain e give dE = -F.dx + V s:e, to third order with the means of both ends;
the regression gives the slope of each term, 1 where labels agree. Data without such pairs, as relaxed crystals of different
compositions, have only the magnitude: what the stress would do to the energy of an atom, V tr(s) / 3N.

Legend: P pairs.
"""

from dataclasses import dataclass
from math import isnan, log

import numpy as np

from modelforge.atoms.units import GIGAPASCAL, STRESS_IN_EV_PER_CUBIC_ANGSTROM
from modelforge.data.audit.declared_units import DeclaredUnits
from modelforge.data.audit.energy_forces import Slope
from modelforge.data.audit.findings import Finding, Severity
from modelforge.data.audit.near_pairs import SAME_CELL, crystal_displacements
from modelforge.data.audit.sampling import Ensemble
from modelforge.data.structures import Floats, Integers, Structures

MAX_STRAIN = 0.1  # third orders count beyond: for graphite the slope is 0.996 below 0.05, 0.991 below 0.1, 0.96 up to 0.3
MAX_DISPLACEMENT = 0.3  # angstrom, RMS
MAX_PAIRS = 3_000
MIN_PAIRS = 10
LARGEST_REST = {"stress": 0.2, "forces": 0.4}
"""Of what the regression leaves over, against the part of stress or forces in it (RMS); without it third orders decide.
Strained and rattled copper and aluminium (EMT) gave slopes of 0.8 to 1.13 below and anything from -0.2 to 2.1 above; graphite
has 0.02 for the stress and 0.4 for the forces."""
TOLERANCE = 1.5  # factor between a slope and its explanation; the least of the known ones is 6 (rydberg against eV per bohr^3)
LARGEST_WORK = 3.0  # eV per atom: V tr(s) / 3N; 0.03 for relaxed crystals, 2 for carbon at 40 GPa
LARGEST_AGAINST_FORCES = 20.0  # the same over RMS force times distance between atoms: 0.5 and 1.5 in those sets

OTHER_SIGN = 'a stress is positive under tension, set dataset.stress_convention = "compression_positive" if it is not'
FACTORS = {
    "GPa per eV/angstrom^3": 1 / GIGAPASCAL,
    "kbar per eV/angstrom^3": 10 / GIGAPASCAL,
    "bar per eV/angstrom^3": 10_000 / GIGAPASCAL,
}


@dataclass(frozen=True)
class StressSlopes:
    """Slopes of energy changes against the work of the stress, and against that of the forces; NaN without an answer."""

    stress: float
    virial: float  # of the stress divided by the volume, as if the labels were virials
    forces: Slope | None  # of the work of the forces, where it is large enough to tell
    num_pairs: int


@dataclass(frozen=True)
class StressScale:
    """How large stresses are."""

    median: float  # eV/angstrom^3, of the absolute mean of the diagonal
    work: float  # eV per atom, median of V |tr(s)| / 3N
    against_forces: float  # the same over RMS force times distance between atoms; infinite where all forces are zero


def stress_slopes(ensembles: list[Ensemble]) -> StressSlopes | None:
    """The slopes over pairs of slightly different cells, or None where there are too few."""
    rows = [_works(ensemble) for ensemble in ensembles if ensemble.periodic.all() and len(ensemble) > 1]
    if not rows or sum(len(part) for part in rows) < MIN_PAIRS:
        return None
    of_forces, of_stress, of_virial, change, num_atoms = np.concatenate(rows).T
    as_stress, as_virial = (_regression(of_forces, work, change, num_atoms) for work in (of_stress, of_virial))
    return StressSlopes(as_stress.stress, as_virial.stress, as_stress.forces or as_virial.forces, len(change))


def stress_scale(structures: Structures) -> StressScale | None:
    """Magnitudes of the stresses of fully periodic structures, or None without any."""
    members = np.flatnonzero(structures.periodic.all(axis=1) & structures.has_stress)
    if not len(members):
        return None
    crystals = structures.take(members)
    volume_per_atom = np.abs(np.linalg.det(crystals.cell)) / crystals.num_atoms
    pressure = np.abs(np.trace(crystals.stress, axis1=1, axis2=2)) / 3
    work = float(np.median(pressure * volume_per_atom))
    forces = crystals.forces[crystals.has_force]
    typical = float(np.sqrt(np.mean(forces**2)) * np.cbrt(np.median(volume_per_atom))) if len(forces) else 0.0
    return StressScale(float(np.median(pressure)), work, work / typical if typical else float("inf"))


def stress_findings(
    slopes: StressSlopes | None, scale: StressScale | None, *, energy_slope: float, declared: DeclaredUnits
) -> tuple[Finding, ...]:
    """What is wrong with the stresses; `energy_slope` is by how much energies are too large already, against forces."""
    if slopes is not None and not (isnan(slopes.stress) and isnan(slopes.virial)):
        return _slope_findings(slopes, energy_slope, declared)
    if scale is None or scale.work < LARGEST_WORK or scale.against_forces < LARGEST_AGAINST_FORCES:
        return ()
    severity: Severity = "stop" if scale.work > 10 * LARGEST_WORK else "note"
    return (
        Finding(
            severity,
            "dataset.stress_unit",
            f"stresses are {scale.median / GIGAPASCAL:.4g} GPa in the median (V tr(stress)/3 is {scale.work:.3g} eV per atom), "
            f"far above what the forces suggest; read in {_declared_name(declared)}. GPa taken as eV/angstrom^3 are 160 times "
            "too large, kbar 1602 times, virials as many times as the cell has cubic angstrom: set dataset.stress_unit, "
            "or name virials in dataset.virial_key",
        ),
    )


def _slope_findings(slopes: StressSlopes, energy_slope: float, declared: DeclaredUnits) -> tuple[Finding, ...]:
    value, virial = slopes.stress / energy_slope, slopes.virial / energy_slope
    if _is_near(value, 1.0):
        return ()
    origin = f"slope of dE against V stress:strain over {slopes.num_pairs} pairs of slightly strained cells"
    if _is_near(value, -1.0):
        message = f"stresses have the wrong sign ({origin} is {value:.3g}, expected 1)"
        return (Finding("stop", "dataset.stress_convention", f"{message}; {OTHER_SIGN}"),)
    if _is_near(abs(virial), 1.0):
        message = f"stresses are virials ({origin} is {value:.3g}, and {virial:.3g} once divided by the volume)"
        named = "name them in dataset.virial_key instead of dataset.stress_key"
        remedy = named if virial < 0 else "divide them by the volume in the file (virials have the other sign)"
        return (Finding("stop", "dataset.virial_key", f"{message}; {remedy}"),)
    if isnan(value):
        return ()
    message = f"the energy changes {value:.3g} times as much as the stress says ({origin})"
    return (Finding("stop", "dataset.stress_unit", f"{message}{_unit_remedy(value, declared)}"),)


def _unit_remedy(value: float, declared: DeclaredUnits) -> str:
    """Which unit would make the slope 1."""
    sign = f", and the sign is wrong: {OTHER_SIGN}" if value < 0 else ""
    fitting = [
        (abs(log(abs(value) / (unit / declared.stress_in_ev_per_cubic_angstrom))), name)
        for name, unit in STRESS_IN_EV_PER_CUBIC_ANGSTROM.items()
        if _is_near(abs(value), unit / declared.stress_in_ev_per_cubic_angstrom)
    ]
    if fitting:
        return f'; set dataset.stress_unit = "{min(fitting)[1]}"{sign}'
    named = [f"; {factor:.4g} is {name}" for name, factor in FACTORS.items() if _is_near(abs(value), factor)]
    return f"{''.join(named)}{sign}; compare the stresses with the output of the code that made them"


def _declared_name(declared: DeclaredUnits) -> str:
    return declared.stress or f"{declared.energy}/{declared.length}^3"


def _is_near(value: float, expected: float) -> bool:
    return value * expected > 0 and abs(log(value / expected)) < log(TOLERANCE)


def _works(ensemble: Ensemble) -> Floats:
    """Work of forces, stress, and stress over volume, energy change (eV), and number of atoms, of pairs, (P, 5)."""
    usable = np.flatnonzero(np.isfinite(ensemble.stress).all(axis=(1, 2)))
    first, second = _pairs(usable)
    strain, rotation = _strain(ensemble.cell[first], ensemble.cell[second])
    size = np.linalg.norm(strain, axis=(1, 2))
    fractional = crystal_displacements(ensemble, first, second)
    start, end = fractional @ ensemble.cell[first], fractional @ ensemble.cell[second]
    displacement = np.sqrt(np.mean(np.sum(start**2, axis=2), axis=1))
    of_forces = -0.5 * np.sum(ensemble.forces[first] * start + ensemble.forces[second] * end, axis=(1, 2))
    turned = rotation @ ensemble.stress[second] @ np.swapaxes(rotation, 1, 2)
    volume = np.abs(np.linalg.det(ensemble.cell))
    of_virial = 0.5 * np.sum((ensemble.stress[first] + turned) * strain, axis=(1, 2))
    weighted = volume[first, None, None] * ensemble.stress[first] + volume[second, None, None] * turned
    of_stress = 0.5 * np.sum(weighted * strain, axis=(1, 2))
    near = (size > SAME_CELL) & (size < MAX_STRAIN) & (displacement < MAX_DISPLACEMENT)
    change = ensemble.energy[second] - ensemble.energy[first]
    num_atoms = np.full(len(first), ensemble.num_atoms)
    return np.asarray(np.stack([of_forces, of_stress, of_virial, change, num_atoms], axis=1)[near])


def _pairs(usable: Integers) -> tuple[Integers, Integers]:
    """All pairs of the usable conformations, evenly thinned out where they are many, (P,) each."""
    first, second = np.triu_indices(len(usable), 1)
    chosen = np.linspace(0, len(first) - 1, min(len(first), MAX_PAIRS)).astype(np.int64)
    return usable[first[chosen]], usable[second[chosen]]


def _strain(start: Floats, end: Floats) -> tuple[Floats, Floats]:
    """Logarithmic strain from one cell to another, and the rotation that turns vectors of the second back, (P, 3, 3) each."""
    left, stretch, right = np.linalg.svd(np.linalg.solve(start, end))
    strain = np.einsum("pij,pj,pkj->pik", left, np.log(stretch), left)
    return strain, left @ right


@dataclass(frozen=True)
class _Regression:
    stress: float
    forces: Slope | None


def _regression(of_forces: Floats, of_stress: Floats, change: Floats, num_atoms: Floats) -> _Regression:
    """Slopes of energy changes against the works of stress and forces, (P,) each; NaN or None where one cannot tell."""
    works = np.stack([of_forces, of_stress], axis=1)
    scale = np.linalg.norm(works, axis=0)
    scale[scale == 0] = 1.0
    coefficients = np.linalg.lstsq(works / scale, change, rcond=None)[0]  # eV: norms of the parts, as the columns have norm 1
    rest = float(np.linalg.norm(change - works / scale @ coefficients))
    of_forces_tells, of_stress_tells = (
        rest < LARGEST_REST[label] * abs(part) for label, part in zip(("forces", "stress"), coefficients, strict=True)
    )
    value, spread = float(coefficients[0] / scale[0]), rest / float(np.sqrt(len(change)) * scale[0])
    forces = Slope(value, spread, len(change), "strained cells", value * float(num_atoms.mean())) if of_forces_tells else None
    stress = float(coefficients[1] / scale[1]) if of_stress_tells else float("nan")
    return _Regression(stress, forces)
