"""What is told of total charges, spins and the origin of moments, and what is a mistake."""

from dataclasses import replace

import numpy as np
import pytest
from made_structures import cluster, crystal, structures_of, with_charges

from modelforge.data.inputs import Inputs, input_notes, unsaid_notes
from modelforge.data.structures import Structures
from modelforge.errors import UserError

SEEN = Inputs(charge=True, charge_embedding=True, spin_embedding=True)
ALL = np.arange(4)


def molecules(*charges: float, spins: tuple[float, ...] = (np.nan,) * 4, centred: bool = True) -> Structures:
    """Four molecules with moments, total charges and spins."""
    made = []
    for seed, (charge, spin) in enumerate(zip(charges, spins, strict=True)):
        atoms = with_charges(cluster(3, (1, 8), seed=seed), seed=seed)
        atoms.positions -= atoms.get_center_of_mass() - (0 if centred else np.array([0.0, 3.0, 4.0]))
        atoms.info |= {"total_charge": charge, "spin_multiplicity": spin}
        made.append(atoms)
    return structures_of(made)


def test_several_charges_or_spins_that_a_potential_does_not_see_are_told():
    structures = molecules(0, 1, -1, 0, spins=(1, 2, 2, 1))
    charge, spin = input_notes(structures, ALL, Inputs(), {})
    assert charge == (
        "the training set has several values of the total charge (-1, 0, 1), which the energy of this potential does not "
        "depend on: it cannot tell structures apart that differ in nothing else; set potential.charge_embedding = true"
    )
    assert "spin multiplicity (1, 2)" in spin
    assert "potential.spin_embedding = true" in spin
    assert input_notes(structures, ALL, SEEN, {}) == ()
    assert input_notes(structures, np.array([0, 3]), Inputs(), {}) == (), "the training set has one of each"


@pytest.mark.parametrize(
    ("inputs", "key", "remedy"),
    [
        (Inputs(charge=True, charge_embedding=True), "potential.charge_embedding", "dataset.total_charge_key"),
        (Inputs(spin_embedding=True), "potential.spin_embedding", "dataset.spin_multiplicity_key"),
    ],
)
def test_an_embedding_of_what_no_structure_says_is_a_mistake(inputs: Inputs, key: str, remedy: str):
    with pytest.raises(UserError, match=f"^{key}: is true, but no training structure says its .*{remedy}"):
        input_notes(molecules(*[np.nan] * 4), ALL, inputs, {})


def test_an_embedding_of_a_constant_and_missing_values_are_told():
    structures = molecules(1, 1, np.nan, 1, spins=(2, 2, 2, 2))
    notes = input_notes(structures, ALL, SEEN, {})
    assert notes == (
        "potential.spin_embedding is true, but all training structures have the spin multiplicity 2: nothing is learnt for any "
        "other",
        "of the training set 1 of 4 structures do not say their total charge: 0 is taken",
    )
    assert len(list(unsaid_notes(structures, SEEN))) == 1
    unsaid = molecules(*[np.nan] * 4)
    assert len(list(unsaid_notes(unsaid, SEEN))) == 2, "as it was trained on some"
    assert not list(unsaid_notes(unsaid, SEEN_CHARGE))
    assert "do not say their total charge" in input_notes(structures, ALL, Inputs(partial_charges=True), {})[-1]
    assert input_notes(molecules(*[np.nan] * 4), ALL, Inputs(charge=True, partial_charges=True), {}) == ()


def test_moments_that_depend_on_their_origin_are_told_where_it_matters():
    both = {"dipole": 1.0, "quadrupole": 1.0}
    dipole, quadrupole = input_notes(molecules(1, 1, 0, 1, centred=False), ALL, SEEN_CHARGE, both)
    assert dipole.startswith("3 charged structures have a dipole that depends on its origin")
    assert "up to 5 angstrom from the origin" in dipole
    assert quadrupole.startswith("4 structures have a quadrupole")
    assert input_notes(molecules(1, 1, 0, 1, centred=True), ALL, SEEN_CHARGE, both) == ()
    assert input_notes(molecules(1, 1, 0, 1, centred=False), ALL, SEEN_CHARGE, {"energy": 1.0}) == ()
    neutral = molecules(0, 0, 0, 0, centred=False)
    assert input_notes(neutral, ALL, Inputs(), {"dipole": 1.0}) == ()


SEEN_CHARGE = Inputs(charge=True, partial_charges=True)


def test_moments_of_crystals_are_not_looked_at():
    atoms = with_charges(crystal(3, (1, 8), seed=0), seed=0)
    atoms.info["total_charge"] = 1.0
    assert input_notes(structures_of([atoms]), np.array([0]), Inputs(), {"dipole": 1.0, "quadrupole": 1.0}) == ()


def test_quadrupoles_without_trace_are_told_to_be_of_another_definition():
    structures = molecules(0, 0, 0, 0)
    assert input_notes(structures, ALL, Inputs(), {"quadrupole": 1.0}) == ()
    traces = np.trace(structures.quadrupole, axis1=1, axis2=2)[:, None, None]
    traceless = replace(structures, quadrupole=structures.quadrupole - traces / 3 * np.eye(3))
    (note,) = input_notes(traceless, ALL, Inputs(), {"quadrupole": 1.0})
    assert "multiply them by 2/3" in note


def test_charges_that_do_not_add_up_are_told():
    structures = molecules(0, 1, np.nan, 0)
    exact = structures.partial_charges.copy().reshape(4, 3)
    exact += (np.array([0.0, 1.0, 0.0, 0.0]) - exact.sum(axis=1))[:, None] / 3
    right = replace(structures, partial_charges=exact.ravel())
    weights = {"partial_charges": 1.0}
    assert not any("add up" in note for note in input_notes(right, ALL, Inputs(charge=True), weights))
    exact[1, 0] += 0.5
    exact[2, 0] += 0.019
    wrong = replace(structures, partial_charges=exact.ravel())
    (note,) = (note for note in input_notes(wrong, ALL, Inputs(charge=True), weights) if "add up" in note)
    assert note.startswith(
        "the partial charges of 1 of 4 structures do not add up to the total charge (off by up to 0.5 e: made.xyz:1,"
    )
    assert not any("add up" in note for note in input_notes(wrong, ALL, Inputs(charge=True), {}))
