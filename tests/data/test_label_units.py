"""Units and signs of labels, against numbers that are written out here: none comes from the tables of the package."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from toy_experiment import TOML

from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.gather import read
from modelforge.data.structures import Structures
from modelforge.errors import UserError
from modelforge.experiment import load, resolved_toml

# CODATA 2018
HARTREE, BOHR, KCAL, KJ, DEBYE, GPA = (
    27.211386245988,
    0.529177210903,
    0.0433641042418,
    0.0103642696563,
    0.208194332709,
    0.00624150907446,
)
RELATIVE = 1e-9
LENGTHS = "2 0 0 0 3 0 0 0 4"  # of the cell: its volume is 24
STRESS = "1 0.5 0 0.5 2 0 0 0 3"
HALVED = np.array([[1, 0.5, 0], [0.5, 2, 0], [0, 0, 3]])


def frame(header: str = "", *, columns: str = "forces:R:3", values: str = "1 2 3") -> str:
    """Two atoms in a cell."""
    properties = f"Properties=species:S:1:pos:R:3:{columns}"
    return f'2\n{properties} Lattice="{LENGTHS}" {header}\nH 0 0 0 {values}\nO 0 0 1 {values}\n'


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def structures_of(text: str, **options: object) -> Structures:
    Path("x.xyz").write_text(text)
    section = ExtendedXYZ(path="x.xyz", **options)
    return read([section.files([Path("x.xyz")])]).structures


def message_of(text: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        structures_of(text, **options)
    return str(caught.value)


def units_of(text: str, **options: object) -> dict[str, str]:
    Path("x.xyz").write_text(text)
    report = read([ExtendedXYZ(path="x.xyz", **options).files([Path("x.xyz")])]).report
    return {origin.label: origin.unit for origin in report.origins if origin.label}


# Energy, length, forces


@pytest.mark.parametrize(
    ("unit", "in_ev"), [("meV", 1e-3), ("hartree", HARTREE), ("rydberg", HARTREE / 2), ("kcal/mol", KCAL), ("kJ/mol", KJ)]
)
def test_the_unit_of_the_energy_is_that_of_the_forces_over_a_length_too(unit: str, in_ev: float) -> None:
    found = structures_of(frame("energy=-2"), energy_unit=unit)
    np.testing.assert_allclose(found.energy, [-2 * in_ev], rtol=RELATIVE)
    np.testing.assert_allclose(found.forces, 2 * [in_ev * np.array([1, 2, 3])], rtol=RELATIVE)


def test_lengths_scale_positions_cells_and_forces() -> None:
    found = structures_of(frame("energy=-2"), energy_unit="hartree", length_unit="bohr")
    np.testing.assert_allclose(found.positions[1], [0, 0, BOHR], rtol=RELATIVE)
    np.testing.assert_allclose(found.cell[0], np.diag([2, 3, 4]) * BOHR, rtol=RELATIVE)
    np.testing.assert_allclose(found.forces[0], np.array([1, 2, 3]) * 51.42206748, rtol=RELATIVE)  # eV/angstrom


def test_forces_have_a_unit_of_their_own_where_one_is_given() -> None:
    found = structures_of(frame("energy=-2"), energy_unit="hartree", forces_unit="kcal/mol/angstrom")
    np.testing.assert_allclose(found.forces[0], np.array([1, 2, 3]) * KCAL, rtol=RELATIVE)


def test_forces_are_minus_the_gradient() -> None:
    text = frame("energy=-2", columns="grad:R:3")
    found = structures_of(text, gradient_key="grad", energy_unit="hartree", length_unit="bohr")
    np.testing.assert_allclose(found.forces[0], -51.42206748 * np.array([1, 2, 3]), rtol=RELATIVE)
    assert units_of(text, gradient_key="grad", energy_unit="hartree", length_unit="bohr")["forces"] == "hartree/bohr"


# Stress and virial


@pytest.mark.parametrize(
    ("unit", "factor"), [("GPa", GPA), ("kbar", GPA / 10), ("bar", GPA / 10_000), ("meV/angstrom^3", 1e-3)]
)
def test_the_stress_is_converted(unit: str, factor: float) -> None:
    found = structures_of(frame(f'stress="{STRESS}"'), stress_key="stress", stress_unit=unit)
    np.testing.assert_allclose(found.stress[0], factor * HALVED, rtol=RELATIVE)


def test_the_unit_of_the_stress_follows_from_energy_and_length() -> None:
    found = structures_of(frame(f'stress="{STRESS}"'), stress_key="stress", energy_unit="hartree", length_unit="bohr")
    np.testing.assert_allclose(found.stress[0], 183.6315353 * HALVED, rtol=1e-8)  # hartree/bohr^3 is 29421.02 GPa


def test_a_stress_that_is_positive_under_compression_changes_its_sign() -> None:
    text = frame(f'stress="{STRESS}"')
    found = structures_of(text, stress_key="stress", stress_convention="compression_positive", stress_unit="kbar")
    np.testing.assert_allclose(found.stress[0], -GPA / 10 * HALVED, rtol=RELATIVE)


def test_six_numbers_are_xx_yy_zz_yz_xz_xy() -> None:
    found = structures_of(frame('stress="1 2 3 4 5 6"'), stress_key="stress")
    assert found.stress[0].tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]


def test_the_stress_is_minus_the_virial_over_the_volume() -> None:
    found = structures_of(frame(f'virial="{STRESS}"'), virial_key="virial", energy_unit="hartree", length_unit="bohr")
    np.testing.assert_allclose(found.stress[0], -HARTREE * HALVED / (24 * BOHR**3), rtol=RELATIVE)
    assert units_of(frame(f'virial="{STRESS}"'), virial_key="virial", energy_unit="hartree")["stress"] == "hartree"


def test_a_virial_without_a_cell_is_an_error() -> None:
    text = frame(f'virial="{STRESS}"').replace(f'Lattice="{LENGTHS}" ', "")
    assert message_of(frame() + text, virial_key="virial") == ("x.xyz: structure 1: has a virial, but no cell; remove one")


def test_what_says_nothing_of_a_virial_is_refused_beside_it() -> None:
    for option, value in (("stress_unit", "kbar"), ("stress_convention", "compression_positive")):
        with pytest.raises(ValidationError, match=f"{option}: has no effect with virial_key"):
            ExtendedXYZ(path="x.xyz", virial_key="virial", **{option: value})


@pytest.mark.parametrize("options", [{"gradient_key": "grad"}, {"virial_key": "virial"}, {"stress_key": "stress"}])
def test_keys_that_take_the_place_of_others_read_again(options: dict[str, str]) -> None:
    """A run that goes on reads its own experiment.toml, in which every default is written down."""
    path = Path("x.toml")
    path.write_text(TOML)
    first = load(path, [f"dataset.{key}={value}" for key, value in options.items()])
    path.write_text(resolved_toml(first.experiment, first.origins))
    assert load(path).experiment == first.experiment


# Moments, charges, weights


@pytest.mark.parametrize(("unit", "factor"), [(None, 1.0), ("debye", DEBYE), ("e*bohr", BOHR), ("e*nm", 10.0)])
def test_dipoles_are_converted(unit: str | None, factor: float) -> None:
    found = structures_of(frame('mu="1 -2 0.5"'), dipole_key="mu", dipole_unit=unit)
    np.testing.assert_allclose(found.dipole, [[factor, -2 * factor, 0.5 * factor]], rtol=RELATIVE)


def test_dipoles_and_quadrupoles_follow_the_unit_of_length() -> None:
    found = structures_of(frame(f'mu="1 -2 0.5" Q="{STRESS}"'), dipole_key="mu", quadrupole_key="Q", length_unit="bohr")
    np.testing.assert_allclose(found.dipole[0], BOHR * np.array([1, -2, 0.5]), rtol=RELATIVE)
    np.testing.assert_allclose(found.quadrupole[0], BOHR**2 * HALVED, rtol=RELATIVE)


@pytest.mark.parametrize(("unit", "factor"), [("e*bohr^2", BOHR**2), ("debye*angstrom", DEBYE), ("e*nm^2", 100.0)])
def test_quadrupoles_are_converted_and_keep_their_trace(unit: str, factor: float) -> None:
    found = structures_of(frame(f'Q="{STRESS}"'), quadrupole_key="Q", quadrupole_unit=unit)
    np.testing.assert_allclose(found.quadrupole[0], factor * HALVED, rtol=RELATIVE)
    assert np.trace(found.quadrupole[0]) == pytest.approx(6 * factor)


def test_partial_charges_stand_in_columns_or_in_headers() -> None:
    in_columns = frame(columns="forces:R:3:q:R:1", values="1 2 3 0.5")
    in_header = frame('q="0.25 -0.25"')
    found = structures_of(in_columns + in_header + frame(), partial_charges_key="q", length_unit="bohr", energy_unit="hartree")
    np.testing.assert_array_equal(found.partial_charges, [0.5, 0.5, 0.25, -0.25, np.nan, np.nan])
    assert found.has("partial_charges").tolist() == [True, True, False]


def test_partial_charges_of_too_few_atoms_are_an_error() -> None:
    assert message_of(frame("q=0.25"), partial_charges_key="q") == (
        "x.xyz:2: q: must be 2 numbers, or nan where it is missing (got 0.25)"
    )


def test_total_charges_and_multiplicities_have_no_other_unit() -> None:
    found = structures_of(
        frame("charge=-1 spin=3") + frame(), total_charge_key="charge", spin_multiplicity_key="spin", energy_unit="hartree"
    )
    np.testing.assert_array_equal(found.total_charge, [-1, np.nan])
    np.testing.assert_array_equal(found.spin_multiplicity, [3, np.nan])


def test_weights_are_1_where_nothing_is_said() -> None:
    found = structures_of(frame("config_weight=2.5") + frame() + frame("config_weight=0"), weight_key="config_weight")
    assert found.weight.tolist() == [2.5, 1.0, 0.0]
    assert structures_of(frame("config_weight=2.5")).weight.tolist() == [1.0], "nobody asked for them"


def test_a_negative_weight_is_an_error() -> None:
    text = frame() + frame("config_weight=-1")
    assert message_of(text, weight_key="config_weight") == "x.xyz:6: config_weight: must be 0 or more (got -1)"


# Units that the file states


def test_units_in_the_header_are_used() -> None:
    header = f'energy=-2 stress="{STRESS}" energy_unit=hartree length_unit=bohr forces_unit=kcal/mol/Ang stress_unit=GPa'
    found = structures_of(frame(header), stress_key="stress")
    np.testing.assert_allclose(found.energy, [-2 * HARTREE], rtol=RELATIVE)
    np.testing.assert_allclose(found.positions[1], [0, 0, BOHR], rtol=RELATIVE)
    np.testing.assert_allclose(found.forces[0], np.array([1, 2, 3]) * KCAL, rtol=RELATIVE)
    np.testing.assert_allclose(found.stress[0], GPA * HALVED, rtol=RELATIVE)


@pytest.mark.parametrize("energy_unit", ["hartree", "au"])
def test_what_follows_from_units_in_the_header_follows_from_these(energy_unit: str) -> None:
    """A header with kcal/mol and forces in eV/angstrom would be a file of two units."""
    header = f'energy=-2 stress="{STRESS}" mu="1 0 0" energy_unit={energy_unit} length_unit=bohr'
    found = structures_of(frame(header), stress_key="stress", dipole_key="mu")
    np.testing.assert_allclose(found.forces[0], 51.42206748 * np.array([1, 2, 3]), rtol=RELATIVE)
    np.testing.assert_allclose(found.stress[0], 183.6315353 * HALVED, rtol=1e-8)
    np.testing.assert_allclose(found.dipole[0], [BOHR, 0, 0], rtol=RELATIVE)
    virial = structures_of(frame(f'virial="{STRESS}" energy_unit={energy_unit}'), virial_key="virial")
    np.testing.assert_allclose(virial.stress[0], -HARTREE * HALVED / 24, rtol=RELATIVE)


def test_an_energy_unit_in_the_header_meets_a_length_unit_in_the_experiment() -> None:
    found = structures_of(frame("energy=-2 energy_unit=kcal/mol"), length_unit="nm")
    np.testing.assert_allclose(found.forces[0], KCAL / 10 * np.array([1, 2, 3]), rtol=RELATIVE)


def test_a_unit_in_file_and_experiment_must_be_the_same() -> None:
    text = frame("energy=-2 energy_unit=Ha")
    np.testing.assert_allclose(structures_of(text, energy_unit="hartree").energy, [-2 * HARTREE], rtol=RELATIVE)
    assert message_of(text, energy_unit="eV") == (
        "dataset.energy_unit: must be the unit that the file states, 'Ha' (got 'eV'); remove the key (x.xyz)"
    )
    assert units_of(text)["energy"] == "Ha (stated in the file)"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("energy_unit=furlong", "x.xyz: energy: unknown unit 'furlong'"),
        ("energy_unit=bohr", "x.xyz: energy: 'bohr' is no unit of energy"),
        ("forces_unit=eV", "x.xyz: forces: 'eV' is no unit of forces"),
    ],
)
def test_a_unit_that_is_none_is_an_error(header: str, message: str) -> None:
    assert message_of(frame(f"energy=-2 {header}")) == message


def test_two_units_in_one_file_are_an_error() -> None:
    text = frame("energy=-2 energy_unit=Ha") + frame("energy=-2 energy_unit=eV")
    assert message_of(text) == "x.xyz: energy_unit: must be stated alike in all structures, or in none (got 'eV', 'Ha')"
