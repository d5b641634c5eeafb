"""`DeclaredUnits`: the units that an experiment file says its labels have, against which an audit holds what it measures."""

from dataclasses import dataclass

from modelforge.atoms.units import (
    ENERGY_IN_EV,
    FORCE_IN_EV_PER_ANGSTROM,
    LENGTH_IN_ANGSTROM,
    STRESS_IN_EV_PER_CUBIC_ANGSTROM,
    EnergyUnit,
    ForceUnit,
    LengthUnit,
    StressUnit,
)


@dataclass(frozen=True)
class DeclaredUnits:
    """Units of a file as `[dataset]` gives them; None follows from the energy and length units, as it does there."""

    energy: EnergyUnit = "eV"
    length: LengthUnit = "angstrom"
    forces: ForceUnit | None = None
    stress: StressUnit | None = None

    @property
    def energy_in_ev(self) -> float:
        """How many eV the energy unit is."""
        return ENERGY_IN_EV[self.energy]

    @property
    def length_in_angstrom(self) -> float:
        """How many angstrom the length unit is."""
        return LENGTH_IN_ANGSTROM[self.length]

    @property
    def forces_name(self) -> str:
        """The unit of the forces in words."""
        return self.forces or f"{self.energy}/{self.length}"

    @property
    def force_in_ev_per_angstrom(self) -> float:
        """How many eV/angstrom the unit of the forces is."""
        return FORCE_IN_EV_PER_ANGSTROM[self.forces] if self.forces else self.energy_in_ev / self.length_in_angstrom

    @property
    def stress_in_ev_per_cubic_angstrom(self) -> float:
        """How many eV/angstrom^3 the unit of the stress is."""
        if self.stress:
            return STRESS_IN_EV_PER_CUBIC_ANGSTROM[self.stress]
        return self.energy_in_ev / self.length_in_angstrom**3
