"""The reference of a data set: what is taken off the labels, from each of its sources."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import structures_of
from pydantic import ValidationError
from tolerances import LABEL_ROUNDING, SELF_ENERGY

from modelforge.atoms.graph import Reach
from modelforge.atoms.units import HARTREE
from modelforge.data.batching.batches import structure_table
from modelforge.data.prepare import prepare
from modelforge.data.reference import (
    Reference,
    SelfEnergiesSection,
    energies_of_isolated_atoms,
    isolated_atoms,
    reference_of,
)
from modelforge.data.sources.extxyz import ExtendedXYZ, read_extxyz
from modelforge.data.structures import Structures, sum_of_constants
from modelforge.errors import UserError

PLANTED = {1: -13.6, 6: -1029.4, 8: -2042.0, 35: -48_812.25}
WEIGHTS = {"energy": 1.0}


def total(formula: str, interaction: float = 0.0) -> Atoms:
    atoms = Atoms(formula)
    atoms.positions = np.random.default_rng(len(formula)).uniform(-20, 20, size=(len(atoms), 3))
    atoms.info["energy"] = sum(PLANTED[z] for z in atoms.numbers.tolist()) + interaction
    return atoms


def hydrocarbons(*, binding: float = -3.0) -> Structures:
    """Each atom bound by the same energy, so that the fit takes up all of it."""
    formulas = ("CH4", "C2H6", "CH4O", "CH3Br", "C2H6O", "H2O", "CHBr3", "CO2")
    return structures_of([total(formula, binding * len(Atoms(formula))) for formula in formulas])


def reference_for(section: SelfEnergiesSection, structures: Structures) -> Reference:
    return reference_of(section, structures, np.arange(len(structures)), structures.elements, {})


def given(values: dict[str, float], **options: str) -> SelfEnergiesSection:
    return SelfEnergiesSection(source="values", values=values, **options)


ALL_GIVEN = {"H": -13.6, "C": -1029.4, "O": -2042.0, "Br": -48_812.25}


def test_a_fit_takes_up_the_mean_interaction_and_shifts_nothing():
    structures = hydrocarbons()
    found = reference_for(SelfEnergiesSection(), structures)
    expected = {z: value - 3.0 for z, value in PLANTED.items()}
    assert found.self_energies.by_element == pytest.approx(expected, rel=0, abs=SELF_ENERGY)
    assert found.shifts == dict.fromkeys(PLANTED, 0.0)
    assert found.notes == ()
    np.testing.assert_allclose(sum_of_constants(structures, found.table()), structures.energy, rtol=0, atol=SELF_ENERGY)


def test_given_values_stay_and_the_mean_interaction_is_a_shift():
    structures = hydrocarbons()
    found = reference_for(given(ALL_GIVEN), structures)
    assert found.self_energies.by_element == PLANTED
    assert found.shifts == pytest.approx(dict.fromkeys(PLANTED, -3.0), rel=0, abs=1e-8)
    np.testing.assert_allclose(sum_of_constants(structures, found.table()), structures.energy, rtol=0, atol=SELF_ENERGY)


def test_values_may_have_another_unit():
    structures = hydrocarbons()
    in_hartree = {symbol: value / HARTREE for symbol, value in ALL_GIVEN.items()}
    found = reference_for(given(in_hartree, unit="hartree"), structures)
    assert found.self_energies.by_element == pytest.approx(PLANTED, rel=0, abs=SELF_ENERGY)


def test_elements_without_a_given_value_are_fitted_after_the_given_ones():
    structures = hydrocarbons(binding=0.0)
    found = reference_for(given({"C": -1029.4, "Br": -48_812.25}), structures)
    assert found.self_energies.by_element == pytest.approx(PLANTED, rel=0, abs=SELF_ENERGY)
    assert found.self_energies.fitted == (1, 8)
    assert found.notes == ("no self-energy was given for H, O: fitted to the training set with the given ones fixed",)


def test_none_takes_nothing_off():
    structures = hydrocarbons()
    found = reference_for(SelfEnergiesSection(source="none"), structures)
    assert not found.table().any()


def test_labels_without_energies_need_no_reference():
    structures = hydrocarbons()
    unlabelled = replace(structures, energy=np.full(len(structures), np.nan))
    assert not reference_for(SelfEnergiesSection(), unlabelled).table().any()


def test_structures_without_an_energy_do_not_count():
    structures = hydrocarbons()
    energy = structures.energy.copy()
    energy[2] = np.nan
    found = reference_for(SelfEnergiesSection(), replace(structures, energy=energy))
    expected = {z: value - 3.0 for z, value in PLANTED.items()}
    assert found.self_energies.by_element == pytest.approx(expected, rel=0, abs=SELF_ENERGY)


def test_values_of_another_method_stop_the_run():
    structures = hydrocarbons()
    wrong = {**ALL_GIVEN, "C": -700.0}
    with pytest.raises(UserError) as caught:
        reference_for(given(wrong), structures)
    message = str(caught.value)
    assert message.startswith("dataset.self_energies: without the self-energies (H -13.600, C -700.000,")
    assert "made.xyz:" in message
    assert "eV per atom; expected -20 to 3" in message
    assert 'set source = "regression"' in message


def test_values_in_the_wrong_unit_stop_the_run():
    structures = hydrocarbons()
    with pytest.raises(UserError, match="eV per atom; expected -20 to 3"):
        reference_for(given(ALL_GIVEN, unit="hartree"), structures)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "values"}, 'missing; source "values" needs a table'),
        ({"source": "values", "values": {"Xx": 1.0}}, "unknown element 'Xx'"),
        ({"source": "none", "values": {"H": 1.0}}, 'has no effect with source = "none"'),
        ({"isolated_atoms_path": "atoms.xyz"}, 'has no effect with source = "regression"'),
    ],
)
def test_options_that_mean_nothing_are_mistakes(options: dict, words: str):
    with pytest.raises(ValidationError) as caught:
        SelfEnergiesSection(**options)
    assert words in str(caught.value)


# Isolated atoms


def test_isolated_atoms_of_a_published_set_give_its_self_energies(shared_data: Path):
    structures = read_extxyz(shared_data / "acac" / "isolated_atoms.xyz")
    assert energies_of_isolated_atoms(structures) == {
        int(structures.atomic_numbers[place]): structures.energy[place] for place in range(len(structures))
    }
    assert energies_of_isolated_atoms(structures)[1] == -13.568422178253735
    assert set(energies_of_isolated_atoms(structures)) == {1, 6, 8}


def test_acetylacetone_with_its_isolated_atoms_is_bound_and_shifted(shared_data: Path):
    """One composition: nothing could be fitted, yet all self-energies have a meaning."""
    section = SelfEnergiesSection(source="isolated_atoms", isolated_atoms_path=str(shared_data / "acac" / "isolated_atoms.xyz"))
    source = ExtendedXYZ(path=(str(shared_data / "acac" / "train_300K.xyz"),), self_energies=section)
    data = prepare(source, weights=WEIGHTS)
    assert data.reference.self_energies.fitted == ()
    assert data.notes == ()
    training = data.structures.take(data.split.train)
    binding = (training.energy - sum_of_constants(training, data.reference.self_energies.table())) / training.num_atoms
    assert -6.0 < binding.mean() < -4.0  # eV per atom
    rest = training.energy - sum_of_constants(training, data.reference.table())
    assert abs(rest.mean()) < 1e-8


def test_isolated_atoms_among_the_data_are_taken_out_of_all_sets(tmp_path: Path):
    from_file = tmp_path / "data.xyz"
    lines = []
    for atoms in (*(total(f, -3.0 * len(Atoms(f))) for f in ("CH4", "C2H6", "H2O") * 4), *(total(s) for s in "CHO")):
        lines.append(f'{len(atoms)}\nProperties=species:S:1:pos:R:3 energy={atoms.info["energy"]!r} pbc="F F F"')
        lines += [f"{a.symbol} {a.x} {a.y} {a.z}" for a in atoms]
    from_file.write_text("\n".join(lines) + "\n")
    source = ExtendedXYZ(path=(str(from_file),), self_energies=SelfEnergiesSection(source="isolated_atoms"))
    data = prepare(source, weights=WEIGHTS)
    assert data.reference.self_energies.by_element == {z: PLANTED[z] for z in (1, 6, 8)}
    assert sum(len(part) for part in data.split.sets().values()) == 12
    assert (data.structures.take(data.split.train).num_atoms > 1).all()
    assert "3 isolated atoms give the self-energies and are in none of the sets" in data.notes


def test_two_energies_of_one_isolated_atom_are_a_mistake():
    two = structures_of([total("H"), total("H", 0.1)])
    with pytest.raises(UserError, match=r"made\.xyz:1: a second isolated H atom with another energy"):
        energies_of_isolated_atoms(two)


def test_an_atom_in_a_crystal_is_not_isolated():
    crystal = Atoms("C", cell=[2, 2, 2], pbc=True, info={"energy": -1.0})
    unlabelled = Atoms("C")
    assert isolated_atoms(structures_of([crystal, unlabelled, total("C")])).tolist() == [2]


# What becomes of the labels


def test_labels_in_single_precision_are_the_rounded_difference():
    """Total energies of -1e5 eV have steps of 8 meV in float32; what is left of them must not."""
    rng = np.random.default_rng(0)
    atoms = [total("C2H3Br3O", energy) for energy in rng.normal(scale=2.0, size=200)]
    structures = structures_of(atoms)
    found = reference_for(SelfEnergiesSection(), structures)
    exact = structures.energy - sum_of_constants(structures, found.table())
    table = structure_table(structures, reach=Reach(0.1), self_energies=found.table(), dtype=torch.float32)
    assert table.energy.dtype == torch.float32
    assert np.abs(structures.energy).min() > 1e5
    assert np.abs(table.energy.double().numpy() - exact).max() <= LABEL_ROUNDING * np.abs(exact).max()


def test_the_spread_of_energies_of_one_composition_stays_as_it_was():
    rng = np.random.default_rng(1)
    structures = structures_of([total("C2H3Br3O", energy) for energy in rng.normal(scale=2.0, size=200)])
    for section in (SelfEnergiesSection(), given(ALL_GIVEN), SelfEnergiesSection(source="none")):
        reference = reference_for(section, structures)
        rest = structures.energy - sum_of_constants(structures, reference.table())
        assert np.ptp(rest) == pytest.approx(np.ptp(structures.energy), rel=0, abs=1e-9)


@pytest.mark.parametrize("element", [1, 6, 35])
def test_a_shift_of_all_labels_of_an_element_leaves_what_is_trained_on(element: int):
    rng = np.random.default_rng(2)
    formulas = ("CH4", "C2H6", "CH4O", "CH3Br", "C2H6O", "H2O", "CHBr3", "CO2") * 4
    structures = structures_of([total(formula, rng.normal()) for formula in formulas])
    shift = np.zeros(119)
    shift[element] = 1e4
    shifted = replace(structures, energy=structures.energy + sum_of_constants(structures, shift))
    tables = [reference_for(SelfEnergiesSection(), s).table() for s in (structures, shifted)]
    labels = [
        structure_table(s, reach=Reach(0.1), self_energies=table, dtype=torch.float32).energy.double().numpy()
        for s, table in zip((structures, shifted), tables, strict=True)
    ]
    assert np.abs(labels[0]).max() > 0.1
    assert np.abs(labels[1] - labels[0]).max() < 1e-6  # eV
