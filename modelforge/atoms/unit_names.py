"""Units as files and experiments spell them: `kcal/mol/Ang`, `kilojoule_per_mole / nanometer`, `hartree/bohr`, `Debye`.

A unit is a product of names with whole powers. Its value comes with its dimension, a power of energy, length and charge, so
that a length cannot pass for an energy.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from modelforge.atoms.units import (
    AVOGADRO,
    BOHR,
    ELEMENTARY_CHARGE,
    ENERGY_IN_EV,
    GIGAPASCAL,
    HARTREE,
)


class Dimension(NamedTuple):
    """Powers of energy, length and charge."""

    energy: int = 0
    length: int = 0
    charge: int = 0


class Unit(NamedTuple):
    """How many eV, angstrom and elementary charges, in their powers, a unit is."""

    value: float
    dimension: Dimension


ENERGY, LENGTH, CHARGE, NONE = Dimension(energy=1), Dimension(length=1), Dimension(charge=1), Dimension()
JOULE = 1 / ELEMENTARY_CHARGE
DEBYE = 1e-21 / 299_792_458 / ELEMENTARY_CHARGE * 1e10  # e*angstrom, 1e-21 C m^2/s divided by the speed of light

DIMENSIONS: Mapping[str, Dimension] = {
    "energy": ENERGY,
    "length": LENGTH,
    "forces": Dimension(energy=1, length=-1),
    "stress": Dimension(energy=1, length=-3),
    "virial": ENERGY,
    "total_charge": CHARGE,
    "spin_multiplicity": NONE,
    "dipole": Dimension(charge=1, length=1),
    "quadrupole": Dimension(charge=1, length=2),
    "partial_charges": CHARGE,
}
"""What labels are measured in."""

NAMES: Mapping[str, Unit] = {
    **dict.fromkeys(("ev", "electronvolt", "electron_volt"), Unit(1.0, ENERGY)),
    **dict.fromkeys(("mev", "millielectronvolt"), Unit(1e-3, ENERGY)),
    "MeV": Unit(1e6, ENERGY),  # the one name whose case matters
    **dict.fromkeys(("hartree", "hartrees", "ha", "eh", "e_h"), Unit(HARTREE, ENERGY)),
    **dict.fromkeys(("rydberg", "ry"), Unit(HARTREE / 2, ENERGY)),
    **dict.fromkeys(("kcal", "kilocalorie"), Unit(4184 * JOULE, ENERGY)),
    **dict.fromkeys(("kj", "kilojoule"), Unit(1000 * JOULE, ENERGY)),
    **dict.fromkeys(("j", "joule"), Unit(JOULE, ENERGY)),
    "kilojoule_per_mole": Unit(ENERGY_IN_EV["kJ/mol"], ENERGY),
    "kilocalorie_per_mole": Unit(ENERGY_IN_EV["kcal/mol"], ENERGY),
    **dict.fromkeys(("mol", "mole"), Unit(AVOGADRO, NONE)),
    **dict.fromkeys(("angstrom", "angstroms", "ang", "a", "å", "\u212b"), Unit(1.0, LENGTH)),
    **dict.fromkeys(("bohr", "bohrs", "a0", "a_0"), Unit(BOHR, LENGTH)),
    **dict.fromkeys(("nm", "nanometer", "nanometers"), Unit(10.0, LENGTH)),
    **dict.fromkeys(("pm", "picometer"), Unit(0.01, LENGTH)),
    **dict.fromkeys(("m", "meter"), Unit(1e10, LENGTH)),
    **dict.fromkeys(("e", "elementary_charge", "elementary_charges"), Unit(1.0, CHARGE)),
    **dict.fromkeys(("debye", "d"), Unit(DEBYE, Dimension(charge=1, length=1))),
    **dict.fromkeys(("gpa", "gigapascal"), Unit(GIGAPASCAL, Dimension(energy=1, length=-3))),
    **dict.fromkeys(("kbar", "kilobar"), Unit(GIGAPASCAL / 10, Dimension(energy=1, length=-3))),
    "bar": Unit(GIGAPASCAL / 10_000, Dimension(energy=1, length=-3)),
    **dict.fromkeys(("dimensionless", "1", "none", ""), Unit(1.0, NONE)),
}
FACTOR = re.compile(r"([*/]?)\s*([^\s*/^]*)\s*(?:(?:\*\*|\^)\s*\(?([+-]?[0-9])(?![0-9])\)?)?\s*")


@cache
def parse_unit(text: str) -> Unit:
    """The unit that a text names; a `ValueError` if it names none."""
    value, dimension, rest = 1.0, NONE, text.strip().strip("()").replace("·", "*")
    while rest:
        match = FACTOR.match(rest)
        assert match is not None, "all its parts are optional"
        sign, name, power = match.groups()
        unit = NAMES.get(name) or NAMES.get(name.lower())
        if unit is None or not name:
            raise ValueError(f"unknown unit {text!r}")
        exponent = int(power or 1) * (-1 if sign == "/" else 1)
        value *= unit.value**exponent
        dimension = Dimension(*(have + exponent * more for have, more in zip(dimension, unit.dimension, strict=True)))
        rest = rest[match.end() :]
    return Unit(value, dimension)


def factor_of(text: str, label: str) -> float:
    """What numbers of a label (or "length") in this unit are multiplied with; a `ValueError` where the unit measures
    something else. Bare "au" of the label is the atomic unit."""
    dimension = DIMENSIONS[label]
    if text.lower() in ("au", "a.u.", "atomic"):
        return HARTREE**dimension.energy * BOHR**dimension.length
    unit = parse_unit(text)
    if unit.dimension != dimension:
        raise ValueError(f"{text!r} is no unit of {label}")
    return unit.value
