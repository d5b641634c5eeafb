"""Units of energies, lengths, forces and stresses, and their factors to eV and angstrom (CODATA 2018).

The table is made from the four constants below: the first two are exact by the definition of the SI.
"""

from typing import Literal

ELEMENTARY_CHARGE = 1.602176634e-19  # C, so that 1 eV is as many joules
AVOGADRO = 6.02214076e23  # 1/mol
HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # angstrom

KJ_PER_MOL = 1e3 / (AVOGADRO * ELEMENTARY_CHARGE)  # eV
GIGAPASCAL = 1e9 * 1e-30 / ELEMENTARY_CHARGE  # eV/angstrom^3

EnergyUnit = Literal["eV", "meV", "hartree", "rydberg", "kcal/mol", "kJ/mol"]
LengthUnit = Literal["angstrom", "bohr", "nm"]
ForceUnit = Literal[
    "eV/angstrom",
    "meV/angstrom",
    "eV/nm",
    "hartree/bohr",
    "hartree/angstrom",
    "rydberg/bohr",
    "kcal/mol/angstrom",
    "kJ/mol/angstrom",
    "kJ/mol/nm",
]
StressUnit = Literal["eV/angstrom^3", "meV/angstrom^3", "hartree/bohr^3", "rydberg/bohr^3", "GPa", "kbar", "bar"]
DipoleUnit = Literal["e*angstrom", "e*bohr", "e*nm", "debye"]
QuadrupoleUnit = Literal["e*angstrom^2", "e*bohr^2", "e*nm^2", "debye*angstrom"]

ENERGY_IN_EV: dict[EnergyUnit, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": HARTREE,
    "rydberg": HARTREE / 2,
    "kcal/mol": 4.184 * KJ_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
}
LENGTH_IN_ANGSTROM: dict[LengthUnit, float] = {"angstrom": 1.0, "bohr": BOHR, "nm": 10.0}
FORCE_IN_EV_PER_ANGSTROM: dict[ForceUnit, float] = {
    "eV/angstrom": 1.0,
    "meV/angstrom": 1e-3,
    "eV/nm": 0.1,
    "hartree/bohr": HARTREE / BOHR,
    "hartree/angstrom": HARTREE,
    "rydberg/bohr": HARTREE / 2 / BOHR,
    "kcal/mol/angstrom": 4.184 * KJ_PER_MOL,
    "kJ/mol/angstrom": KJ_PER_MOL,
    "kJ/mol/nm": KJ_PER_MOL / 10,
}
STRESS_IN_EV_PER_CUBIC_ANGSTROM: dict[StressUnit, float] = {
    "eV/angstrom^3": 1.0,
    "meV/angstrom^3": 1e-3,
    "hartree/bohr^3": HARTREE / BOHR**3,
    "rydberg/bohr^3": HARTREE / 2 / BOHR**3,
    "GPa": GIGAPASCAL,
    "kbar": GIGAPASCAL / 10,
    "bar": GIGAPASCAL / 10_000,
}


def energy_in_ev(unit: EnergyUnit) -> float:
    """How many eV one `unit` is."""
    return ENERGY_IN_EV[unit]
