"""Which units a file must have for everything measured to make sense: the fewest departures from what was declared.

A label in another unit than declared is too large by a factor: energies by a, forces by b, lengths by c. Then the slope of dE
against -F.dx becomes a/(b c), force constants are b/c, and total energies a times what they should be. All combinations of
the units that `[dataset]` knows are tried; one that agrees with every measurement is an explanation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, log

from modelforge.atoms.units import (
    ENERGY_IN_EV,
    FORCE_IN_EV_PER_ANGSTROM,
    LENGTH_IN_ANGSTROM,
    EnergyUnit,
    ForceUnit,
    LengthUnit,
)
from modelforge.data.audit.declared_units import DeclaredUnits
from modelforge.data.audit.energy_forces import Slope
from modelforge.data.audit.scales import Stiffness, TotalEnergies

LENGTH_TOLERANCE = 1.25  # lengths have 0.87 (carbon under pressure) to 1.02 in ten sets, 0.93 in a thousand crystals
STIFFNESS_TOLERANCE = 1.6  # 0.85 to 1.11 in nine sets, 0.5 for a proton between two oxygen atoms
TOTAL_TOLERANCE = 1.02  # 0.995 to 1.005 in eight sets of five all-electron methods
MOST_DEPARTURES = 2
RARE_ENERGY, NOT_FOLLOWING, NOT_SETTABLE = 0.5, 0.1, 0.5  # preferences among equally many departures


@dataclass(frozen=True)
class Measurements:
    """What was measured; None or NaN where the data cannot tell."""

    slope: Slope | None
    length_ratio: float
    stiffness: Stiffness | None
    totals: TotalEnergies | None

    @property
    def num_off(self) -> int:
        """How many of them are not as they should be, whatever the sign."""
        return sum((self.slope_is_off, self.length_is_off, self.stiffness_is_off, self.totals_are_off))

    @property
    def slope_is_off(self) -> bool:
        """Whether energies and forces do not belong together."""
        return self.slope is not None and self.slope.is_off

    @property
    def length_is_off(self) -> bool:
        """Whether neighbours have unusual distances."""
        return isfinite(self.length_ratio) and _is_off(self.length_ratio, LENGTH_TOLERANCE)

    @property
    def stiffness_is_off(self) -> bool:
        """Whether bonds are too stiff or too soft."""
        return self.stiffness is not None and _is_off(self.stiffness.ratio, STIFFNESS_TOLERANCE)

    @property
    def totals_are_off(self) -> bool:
        """Whether total energies are not those of free atoms, as with pseudopotentials."""
        return self.totals is not None and _is_off(self.totals.ratio, TOTAL_TOLERANCE)

    def without_totals(self) -> "Measurements":
        """Without the energies of free atoms, which say nothing about pseudopotentials."""
        return Measurements(self.slope, self.length_ratio, self.stiffness, None)


@dataclass(frozen=True)
class FileUnits:
    """Units that a file may have."""

    energy: EnergyUnit
    length: LengthUnit
    forces: str  # a `ForceUnit`, or another energy unit over a length unit
    energy_per_atom: bool

    @property
    def force_in_ev_per_angstrom(self) -> float:
        """How many eV/angstrom the unit of the forces is."""
        return FORCE_UNITS[self.forces]


FORCE_UNITS: dict[str, float] = {
    f"{energy}/{length}": ENERGY_IN_EV[energy] / LENGTH_IN_ANGSTROM[length]
    for energy, length in product(ENERGY_IN_EV, LENGTH_IN_ANGSTROM)
}


def explanations(measured: Measurements, declared: DeclaredUnits) -> tuple[FileUnits, ...]:
    """All readings of a file with the fewest departures from the declared units that agree with the measurements.

    The declared units alone where they agree; empty where not even two departures explain what was measured. A single
    measurement is explained by a single departure or not at all: two of them explain nearly any number.
    """
    most = min(MOST_DEPARTURES, measured.num_off)
    found: dict[FileUnits, tuple[float, float]] = {}  # disagreement and departures
    for units in _readings():
        cost = _departures(units, declared)
        if int(cost) <= most and (disagreement := _disagreement(units, measured, declared)) < 1:
            found[units] = (round(disagreement, 6), cost)
    fewest = min((int(2 * cost) for _, cost in found.values()), default=0)  # in halves: preferences smaller than that may lose
    ranked = sorted((rank, str(units), units) for units, rank in found.items() if int(2 * rank[1]) == fewest)
    # Readings that no measurement tells apart follow one another; the first of them has the fewest departures.
    return tuple(units for place, (rank, _, units) in enumerate(ranked) if not place or rank[0] != ranked[place - 1][0][0])


def is_settable(forces: str) -> bool:
    """Whether `dataset.forces_unit` knows this unit."""
    known: dict[ForceUnit, float] = FORCE_IN_EV_PER_ANGSTROM
    return forces in known


def follows(units: FileUnits) -> bool:
    """Whether the unit of the forces is the energy unit over the length unit, as it is by default."""
    return units.forces == f"{units.energy}/{units.length}"


def _readings() -> Iterator[FileUnits]:
    for energy, length, forces, per_atom in product(ENERGY_IN_EV, LENGTH_IN_ANGSTROM, FORCE_UNITS, (False, True)):
        yield FileUnits(energy, length, forces, per_atom)


def _departures(units: FileUnits, declared: DeclaredUnits) -> float:
    """Mistakes that a user would have made: forces that follow other energy or length units are none of their own."""
    own_forces = units.forces != declared.forces_name and not (follows(units) and _is_other(units, declared))
    rarity = RARE_ENERGY * (units.energy == "meV") + NOT_SETTABLE * (own_forces and not is_settable(units.forces))
    rarity += NOT_FOLLOWING * (_is_other(units, declared) and not follows(units))
    return (units.energy != declared.energy) + (units.length != declared.length) + units.energy_per_atom + own_forces + rarity


def _is_other(units: FileUnits, declared: DeclaredUnits) -> bool:
    return units.energy != declared.energy or units.length != declared.length


def _disagreement(units: FileUnits, measured: Measurements, declared: DeclaredUnits) -> float:
    """The largest deviation of a measurement from what these units would give, in tolerances."""
    energy = declared.energy_in_ev / ENERGY_IN_EV[units.energy]
    forces = declared.force_in_ev_per_angstrom / units.force_in_ev_per_angstrom
    length = declared.length_in_angstrom / LENGTH_IN_ANGSTROM[units.length]
    deviations = [0.0]
    if (slope := measured.slope) is not None:
        value = slope.times_num_atoms if units.energy_per_atom else slope.value
        deviations.append(_deviation(value, energy / forces / length, slope.error if slope.is_off else slope.tolerance))
    if isfinite(measured.length_ratio):
        deviations.append(_deviation(measured.length_ratio, length, LENGTH_TOLERANCE))
    if (bonds := measured.stiffness) is not None:
        deviations.append(_deviation(bonds.ratio, forces / length, STIFFNESS_TOLERANCE))
    if (totals := measured.totals) is not None:
        value = totals.per_atom_ratio if units.energy_per_atom else totals.ratio
        deviations.append(_deviation(value, energy, TOTAL_TOLERANCE))
    return max(deviations)


def _deviation(found: float, expected: float, tolerance: float) -> float:
    """Deviation by a factor, whatever the sign, in units of the tolerance."""
    return abs(log(abs(found / expected))) / log(tolerance) if found else inf


def _is_off(ratio: float, tolerance: float) -> bool:
    return abs(log(abs(ratio))) > log(tolerance)
