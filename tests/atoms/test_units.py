"""The factors of units agree with those of ASE, which computes them from the same CODATA tables in its own way."""

from typing import get_args

import ase.units
import pytest

from modelforge.atoms.units import (
    ENERGY_IN_EV,
    FORCE_IN_EV_PER_ANGSTROM,
    LENGTH_IN_ANGSTROM,
    STRESS_IN_EV_PER_CUBIC_ANGSTROM,
    EnergyUnit,
    ForceUnit,
    LengthUnit,
    StressUnit,
    energy_in_ev,
)

ASE = ase.units.create_units("2018")
ASE_ENERGIES = {
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": ASE["Hartree"],
    "rydberg": ASE["Ry"],
    "kcal/mol": ASE["kcal"] / ASE["mol"],
    "kJ/mol": ASE["kJ"] / ASE["mol"],
}
ASE_LENGTHS = {"angstrom": 1.0, "bohr": ASE["Bohr"], "nm": ASE["nm"]}
ASE_PRESSURES = {"GPa": ASE["GPa"], "kbar": 1e3 * ASE["bar"], "bar": ASE["bar"]}
CODATA = 1e-8  # relative: ASE derives hartree and bohr from other constants, some releases with fewer digits


@pytest.mark.parametrize("unit", get_args(EnergyUnit))
def test_energies_agree_with_ase(unit: EnergyUnit) -> None:
    assert energy_in_ev(unit) == pytest.approx(ASE_ENERGIES[unit], rel=CODATA)


@pytest.mark.parametrize("unit", get_args(LengthUnit))
def test_lengths_agree_with_ase(unit: LengthUnit) -> None:
    assert LENGTH_IN_ANGSTROM[unit] == pytest.approx(ASE_LENGTHS[unit], rel=CODATA)


@pytest.mark.parametrize("unit", get_args(ForceUnit))
def test_forces_agree_with_ase(unit: ForceUnit) -> None:
    energy, length = unit.rsplit("/", 1)
    assert FORCE_IN_EV_PER_ANGSTROM[unit] == pytest.approx(ASE_ENERGIES[energy] / ASE_LENGTHS[length], rel=CODATA)


@pytest.mark.parametrize("unit", get_args(StressUnit))
def test_stresses_agree_with_ase(unit: StressUnit) -> None:
    if unit in ASE_PRESSURES:
        expected = ASE_PRESSURES[unit]
    else:
        energy, length = unit.removesuffix("^3").rsplit("/", 1)
        expected = ASE_ENERGIES[energy] / ASE_LENGTHS[length] ** 3
    assert STRESS_IN_EV_PER_CUBIC_ANGSTROM[unit] == pytest.approx(expected, rel=CODATA)


def test_published_values() -> None:
    assert energy_in_ev("hartree") == 27.211386245988
    assert energy_in_ev("hartree") / energy_in_ev("kcal/mol") == pytest.approx(627.5094740631, rel=1e-11)
    assert FORCE_IN_EV_PER_ANGSTROM["hartree/bohr"] == pytest.approx(51.4220674763, rel=1e-11)


def test_every_unit_that_may_be_named_has_a_factor() -> None:
    assert set(ENERGY_IN_EV) == set(get_args(EnergyUnit))
    assert set(LENGTH_IN_ANGSTROM) == set(get_args(LengthUnit))
    assert set(FORCE_IN_EV_PER_ANGSTROM) == set(get_args(ForceUnit))
    assert set(STRESS_IN_EV_PER_CUBIC_ANGSTROM) == set(get_args(StressUnit))
