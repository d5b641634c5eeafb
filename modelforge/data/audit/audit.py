"""The audit of labelled structures before training: what their labels and geometries say about units, signs and mistakes.

Distances, forces and energies are looked at in all structures, portion by portion; what needs pairs of structures or edges
looks at a sample, the same one each time.
"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from modelforge.data.audit.declared_units import DeclaredUnits
from modelforge.data.audit.distances import ShortestDistances, distance_findings, shortest_distances
from modelforge.data.audit.energy_forces import Slope, energy_force_slope
from modelforge.data.audit.figures import Figures
from modelforge.data.audit.file_units import Measurements
from modelforge.data.audit.findings import Finding
from modelforge.data.audit.outliers import (
    FarEnergy,
    ForceFigures,
    energy_findings,
    far_energies,
    force_figures,
    force_findings,
)
from modelforge.data.audit.sampling import Ensemble, ensembles, sample
from modelforge.data.audit.scales import length_ratio, stiffness, total_energies
from modelforge.data.audit.stress import StressScale, StressSlopes, stress_findings, stress_scale, stress_slopes
from modelforge.data.audit.unit_findings import unit_findings
from modelforge.data.structures import Integers, Structures

MAX_SAMPLED = 1_000  # structures whose neighbours are looked at
MAX_SAMPLED_ATOMS = 15_000
AS_DECLARED = DeclaredUnits()


@dataclass(frozen=True)
class Audit:
    """What an audit measured, and what it found wrong."""

    figures: Figures
    findings: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """Short lines for the log: what was measured."""
        return self.figures.lines()


@dataclass(frozen=True)
class _Measured:
    """All that the parts of an audit found."""

    num_structures: int
    shortest: ShortestDistances
    labels: Measurements
    forces: ForceFigures | None
    energies: tuple[FarEnergy, ...]
    stress_slopes: StressSlopes | None
    stress_scale: StressScale | None


def audit(structures: Structures, chosen: Integers | None = None, *, declared: DeclaredUnits = AS_DECLARED) -> Audit:
    """Audit the chosen structures, all by default, which were read with the declared units."""
    measured = _measure(structures, chosen)
    return Audit(_figures(structures, measured), _findings(structures, measured, declared))


def _measure(structures: Structures, chosen: Integers | None) -> _Measured:
    shortest = shortest_distances(structures, chosen)
    groups = ensembles(structures, chosen)
    scale = _stress_scale(structures, chosen)
    slopes = stress_slopes(groups) if scale is not None else None
    return _Measured(
        len(structures) if chosen is None else len(chosen),
        shortest,
        _labels(structures, chosen, shortest, groups, slopes),
        force_figures(structures, chosen),
        far_energies(structures, chosen),
        slopes,
        scale,
    )


def _findings(structures: Structures, measured: _Measured, declared: DeclaredUnits) -> tuple[Finding, ...]:
    labels = measured.labels
    energy_slope = labels.slope.value if labels.slope is not None and labels.slope.is_off else 1.0
    return (
        *distance_findings(structures, measured.shortest, length_scale=_length_scale(labels.length_ratio)),
        *unit_findings(labels, declared),
        *stress_findings(measured.stress_slopes, measured.stress_scale, energy_slope=energy_slope, declared=declared),
        *force_findings(structures, measured.forces),
        *energy_findings(structures, measured.energies),
    )


def _labels(
    structures: Structures,
    chosen: Integers | None,
    shortest: ShortestDistances,
    groups: list[Ensemble],
    slopes: StressSlopes | None,
) -> Measurements:
    part = sample(structures, chosen, at_most=MAX_SAMPLED, max_atoms=MAX_SAMPLED_ATOMS)
    finite = shortest.distance[np.isfinite(shortest.distance)]
    ratio = length_ratio(part, shortest=float(np.median(finite))) if len(finite) else float("nan")
    scale = _length_scale(ratio)
    slope: Slope | None = energy_force_slope(groups, length_scale=scale)
    if slope is None and slopes is not None:
        slope = slopes.forces
    return Measurements(slope, ratio, stiffness(part, length_scale=scale), total_energies(part))


def _stress_scale(structures: Structures, chosen: Integers | None) -> StressScale | None:
    labelled = np.flatnonzero(np.isfinite(structures.stress[:, 0, 0]))
    if chosen is not None:
        labelled = np.intersect1d(labelled, chosen)
    if not len(labelled):
        return None
    return stress_scale(sample(structures, labelled, at_most=MAX_SAMPLED, max_atoms=MAX_SAMPLED_ATOMS))


def _length_scale(ratio: float) -> float:
    return ratio if isfinite(ratio) and ratio > 0 else 1.0


def _figures(structures: Structures, measured: _Measured) -> Figures:
    slope, bonds, totals = measured.labels.slope, measured.labels.stiffness, measured.labels.totals
    forces, scale, slopes = measured.forces, measured.stress_scale, measured.stress_slopes
    closest = measured.shortest.closest[0] if measured.shortest.closest else None
    largest = forces.largest[0] if forces else None
    farthest = measured.energies[0] if measured.energies else None
    quantiles = forces.quantiles if forces else (None, None, None, None)
    return Figures(
        num_structures=measured.num_structures,
        slope=slope.value if slope else None,
        slope_spread=slope.spread if slope else None,
        slope_num=slope.num if slope else None,
        slope_estimator=slope.estimator if slope else None,
        length_ratio=_known(measured.labels.length_ratio),
        stiffness_ratio=bonds.ratio if bonds else None,
        stiffness_num_bonds=bonds.num_bonds if bonds else None,
        energy_ratio=totals.ratio if totals else None,
        shortest_distance=closest.distance if closest else None,
        shortest_distance_place=_place(structures, closest.structure, closest.first, closest.second) if closest else None,
        force_median=quantiles[0],
        force_quantile_90=quantiles[1],
        force_quantile_99=quantiles[2],
        force_quantile_999=quantiles[3],
        force_typical=forces.typical if forces else None,
        largest_force=largest.norm if largest else None,
        largest_force_place=_place(structures, largest.structure, largest.atom) if largest else None,
        farthest_energy=farthest.deviation if farthest else None,
        farthest_energy_score=_known(farthest.score) if farthest else None,
        farthest_energy_place=structures.place(farthest.structure) if farthest else None,
        stress_median=scale.median if scale else None,
        stress_slope=_known(slopes.stress) if slopes else None,
        stress_num_pairs=slopes.num_pairs if slopes else None,
    )


def _place(structures: Structures, structure: int, *atoms: int) -> str:
    """`file:index` and the atoms."""
    numbers = " and ".join(map(str, atoms))
    return f"{structures.place(structure)} {'atoms' if len(atoms) > 1 else 'atom'} {numbers}"


def _known(value: float) -> float | None:
    """None in place of a number that is none."""
    return value if isfinite(value) else None
