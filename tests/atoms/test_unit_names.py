"""Spellings of units against numbers written out from CODATA 2018, and what is refused."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelforge.atoms.unit_names import DIMENSIONS, NAMES, Dimension, factor_of, parse_unit

CODATA = 1e-9  # relative; the numbers below have ten digits or more
EV, HARTREE, BOHR = 1.0, 27.211386245988, 0.529177210903
KCAL_PER_MOL, KJ_PER_MOL = 0.04336410424, 0.01036426966
GPA = 0.006241509074
COULOMB = 1 / 1.602176634e-19  # elementary charges
DEBYE = 3.33564095198e-30 * COULOMB * 1e10
ATOMIC_FORCE = 8.2387234983e-8 * COULOMB * 1e-10  # newton
ATOMIC_PRESSURE = 2.9421015697e13 * COULOMB * 1e-30  # pascal
ATOMIC_QUADRUPOLE = 4.4865515246e-40 * COULOMB * 1e20  # C m^2

SPELLINGS = {
    "energy": {
        EV: ("eV", "ev", "EV", " eV ", "(eV)", "electronvolt", "electron_volt"),
        1e-3: ("meV", "mev", "millielectronvolt"),
        1e6: ("MeV",),
        HARTREE: ("hartree", "Hartree", "Hartrees", "Ha", "Eh", "E_h", "au", "a.u.", "atomic"),
        13.605693122994: ("rydberg", "Ry", "Rydberg"),
        KCAL_PER_MOL: ("kcal/mol", "kcal / mol", "kcal*mol^-1", "kcal mol**-1", "kilocalorie/mole", "kilocalorie_per_mole"),
        KJ_PER_MOL: ("kJ/mol", "kj/mole", "kilojoule_per_mole", "kJ·mol^-1", "kilojoule/mol"),
        6.241509074e18: ("J", "joule"),
    },
    "length": {
        1.0: ("angstrom", "Angstrom", "angstroms", "Ang", "A", "Å", "\u212b"),
        BOHR: ("bohr", "Bohr", "a0", "a_0", "au", "bohrs"),
        10.0: ("nm", "nanometer", "nanometers"),
        0.01: ("pm", "picometer"),
        1e10: ("m", "meter"),
    },
    "forces": {
        1.0: ("eV/angstrom", "eV/Å", "eV/A", "eV angstrom^-1", "ev / ang", "eV*angstrom**-1", "eV*angstrom^(-1)"),
        1e-3: ("meV/Ang",),
        ATOMIC_FORCE: ("hartree/bohr", "Ha/bohr", "Eh/a0", "hartree / bohr", "au", "A.U."),
        ATOMIC_FORCE / 2: ("Ry/bohr",),
        KCAL_PER_MOL: ("kcal/mol/Ang", "kcal/mol/angstrom", "kcal/angstrom/mol", "kcal mol^-1 angstrom^-1"),
        0.001036426966: ("kJ/mol/nm", "kilojoule_per_mole / nanometer", "kilojoule_per_mole/nm"),
    },
    "stress": {
        1.0: ("eV/angstrom^3", "eV/A^3", "eV/Ang**3", "eV/angstrom/angstrom/angstrom", "eV*angstrom^-3"),
        GPA: ("GPa", "gigapascal", "gpa"),
        0.0006241509074: ("kbar", "kilobar"),
        6.241509074e-7: ("bar",),
        ATOMIC_PRESSURE: ("hartree/bohr^3", "Ha/a0**3", "au"),
    },
    "virial": {1.0: ("eV",), HARTREE: ("hartree", "au")},
    "total_charge": {1.0: ("e", "elementary_charge", "elementary_charges", "au")},
    "partial_charges": {1.0: ("e",)},
    "spin_multiplicity": {1.0: ("", "1", "dimensionless", "none", "au")},
    "dipole": {
        1.0: ("e*angstrom", "e*Å", "e angstrom", "angstrom*e"),
        BOHR: ("e*bohr", "e*a0", "au"),
        DEBYE: ("debye", "D", "Debye"),
        10.0: ("e*nm",),
    },
    "quadrupole": {
        1.0: ("e*angstrom^2", "e*angstrom*angstrom"),
        ATOMIC_QUADRUPOLE: ("e*bohr^2", "e*a0**2", "au"),
        DEBYE: ("debye*angstrom", "D*A"),
    },
}
TABLE = [(label, spelling, value) for label, units in SPELLINGS.items() for value, some in units.items() for spelling in some]


@pytest.mark.parametrize(("label", "spelling", "value"), TABLE)
def test_a_spelling_is_as_many_of_our_units_as_codata_says(label: str, spelling: str, value: float):
    assert factor_of(spelling, label) == pytest.approx(value, rel=CODATA)


def test_every_label_and_every_name_is_in_the_table():
    assert set(SPELLINGS) == set(DIMENSIONS)
    words = " ".join(spelling.strip(" ()").lower() for _, spelling, _ in TABLE)
    assert [name for name in NAMES if name.lower() not in words] == []


@pytest.mark.parametrize(
    ("label", "spelling"),
    [
        ("energy", "angstrom"),
        ("energy", "eV/angstrom"),
        ("energy", "kcal*mol^2/angstrom"),
        ("energy", ""),
        ("length", "eV"),
        ("length", "debye"),
        ("forces", "eV"),
        ("forces", "eV/angstrom^3"),
        ("forces", "GPa"),
        ("stress", "eV"),
        ("stress", "eV/angstrom^2"),
        ("virial", "GPa"),
        ("dipole", "e"),
        ("dipole", "debye*angstrom"),
        ("quadrupole", "debye"),
        ("partial_charges", "eV"),
        ("spin_multiplicity", "e"),
    ],
)
def test_a_unit_of_something_else_is_refused(label: str, spelling: str):
    with pytest.raises(ValueError, match=f"is no unit of {label}"):
        factor_of(spelling, label)


@pytest.mark.parametrize(
    "text",
    [
        "volt",
        "eVV",
        "eV/",
        "eV//angstrom",
        "eV**",
        "eV^",
        "eV^^2",
        "eV^x",
        "eV^1.5",
        "eV^1/2x",
        "^2",
        "eV/angstrom^3 ^2",
        "* *",
        "2 eV",
        "3.5",
        "eV/(angstrom*mol)",
        "eV,angstrom",
        "eV^11",
        "hartree^999",
        "m^99",
        "bohr^99999999999",
        "bohr^" + "9" * 5000,
        "nan",
        "inf",
        "None/None/x",
        "\0",
    ],
)
def test_what_is_no_unit_is_refused(text: str):
    with pytest.raises(ValueError, match="unknown unit"):
        parse_unit(text)


PIECES = st.sampled_from([*NAMES, "*", "/", "**", "^", "-", "(", ")", " ", "2", "3", "·", "kcal/mol", "x", "\t", "٣"])


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join)))
@example("eV " * 3000)
@example("/" * 5000)
@example("eV^" * 3000)
@example("a" * 50_000)
@example(" " * 50_000 + "x")
def test_any_text_is_a_unit_or_refused_at_once(text: str):
    begun = time.perf_counter()
    refused = ""
    try:
        value, dimension = parse_unit(text)
        assert isinstance(value, float)
        assert all(isinstance(power, int) for power in dimension)
    except ValueError as error:
        refused = str(error)
    assert not refused or refused.startswith("unknown unit")
    assert time.perf_counter() - begun < 2.0


WORDS = st.lists(st.tuples(st.sampled_from([name for name in NAMES if name]), st.integers(-3, 3)), min_size=1, max_size=4)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(WORDS, st.sampled_from(["*", " ", " * ", "·"]), st.sampled_from(["^", "**"]))
def test_a_product_is_the_product_of_its_factors(words: list[tuple[str, int]], times: str, power: str):
    text = times.join(f"{name}{power}{exponent}" for name, exponent in words)
    value, dimension = 1.0, [0, 0, 0]
    for name, exponent in words:
        value *= NAMES[name].value ** exponent
        dimension = [have + exponent * more for have, more in zip(dimension, NAMES[name].dimension, strict=True)]
    found = parse_unit(text)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.dimension == Dimension(*dimension)
