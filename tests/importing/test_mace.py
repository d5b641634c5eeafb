"""MACE networks of other sizes than the golden files, and what cannot be imported. About 2 s.

`written/mace_three_layers.npz` was written beside mace-torch 0.3.16: random weights, three layers, features of degrees 0 to 2,
pairs of neighbours, elements in descending order and Bessel frequencies that were changed; energies and forces are MACE's own.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from golden_files import read
from made_structures import batch_of

from modelforge.errors import UserError
from modelforge.importing.imported import ImportedPotential
from modelforge.importing.mace import imported
from modelforge.potentials.energy_model import EnergyModel

RELATIVE = 1e-10  # of the largest value
WRITTEN = Path(__file__).parent / "written" / "mace_three_layers.npz"
CONTRACTION = "w/products.0.symmetric_contractions.contractions.1"
Arrays = dict[str, np.ndarray]


@pytest.fixture
def golden() -> Arrays:
    return read(WRITTEN)


def found_in(golden: Arrays, **hyper: Any) -> ImportedPotential:
    weights = {name[2:]: array for name, array in golden.items() if name.startswith("w/")}
    return imported({**json.loads(str(golden["hyper"])), **hyper}, weights)


def structures_of(golden: Arrays) -> list[Atoms]:
    ends = np.cumsum(golden["n_atoms"])
    return [
        Atoms(golden["atomic_numbers"][end - num : end], golden["positions"][end - num : end], cell=cell, pbc=pbc)
        for end, num, cell, pbc in zip(ends, golden["n_atoms"], golden["cell"], golden["pbc"], strict=True)
    ]


def predicted(found: ImportedPotential, all_atoms: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Energies with the self-energies, and forces."""
    potential = found.section.build(found.elements).double()
    potential.load_state_dict(found.state)
    prediction = EnergyModel(potential).double().eval()(batch_of(all_atoms, reach=potential.reach).graph)
    own = np.array([sum(found.self_energies[number] for number in atoms.numbers.tolist()) for atoms in all_atoms])
    return found.scale * prediction.energy.numpy() + own, found.scale * prediction.forces.numpy()


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_a_file_written_beside_mace_gives_its_energies_and_forces(golden: Arrays) -> None:
    energies, forces = predicted(found_in(golden), structures_of(golden))
    assert_same(energies, golden["energy"])
    assert_same(forces, golden["forces"])


def test_some_of_the_elements_give_the_same(golden: Arrays) -> None:
    """Although weights are divided by the root of the number of elements."""
    found = found_in(golden, elements=["H", "O"])
    assert found.elements == (1, 8)
    peroxide = [atoms for atoms in structures_of(golden) if set(atoms.numbers) == {1, 8}]
    assert peroxide
    every = predicted(found_in(golden), peroxide)
    for got, expected in zip(predicted(found, peroxide), every, strict=True):
        assert_same(got, expected)


def test_other_units_are_those_of_the_same_network(golden: Arrays) -> None:
    all_atoms = structures_of(golden)
    stretched = [atoms.copy() for atoms in all_atoms]
    for atoms in stretched:
        atoms.set_cell(10.0 * atoms.cell, scale_atoms=False)
        atoms.positions *= 10.0
    energies, forces = predicted(found_in(golden, length_unit="nm", energy_unit="kcal/mol"), stretched)
    kcal = 0.0433641042
    np.testing.assert_allclose(energies, kcal * golden["energy"], rtol=1e-6)
    np.testing.assert_allclose(forces, kcal / 10 * golden["forces"], rtol=0, atol=1e-6 * np.abs(forces).max())


def test_coupling_coefficients_of_the_other_sign_are_brought_into_the_weights(golden: Arrays) -> None:
    """Of a path and of a basis function, with the weights that belong to them."""
    coefficients = "w/interactions.1.conv_tp._compiled_main_left_right._w3j_1_2_1"
    radial = "w/interactions.1.conv_tp_weights.layer2.weight"
    changed = {name: golden[name].copy() for name in (coefficients, radial)}
    changed |= {f"{CONTRACTION}.{name}": golden[f"{CONTRACTION}.{name}"].copy() for name in ("U_matrix_2", "weights_max")}
    paths = changed[radial].reshape(len(changed[radial]), -1, 3)  # three channels
    targets = [
        (a, b, c) for c in range(3) for a in range(3) for b in range(3) if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0
    ]
    assert len(targets) == paths.shape[1]
    paths[:, targets.index((1, 2, 1))] *= -1
    changed[coefficients] *= -1
    changed[f"{CONTRACTION}.U_matrix_2"][..., 2] *= -1
    changed[f"{CONTRACTION}.weights_max"][:, 2] *= -1
    for got, expected in zip(
        predicted(found_in(golden | changed), structures_of(golden)), (golden["energy"], golden["forces"]), strict=True
    ):
        assert_same(got, expected)
    for name in changed:  # one of the two alone is another network
        other = predicted(found_in(golden | {name: changed[name]}), structures_of(golden))[1]
        assert np.abs(other - golden["forces"]).max() > 1e-6 * np.abs(golden["forces"]).max()


def test_another_basis_of_the_same_functions_is_brought_into_the_weights(golden: Arrays) -> None:
    """Independent functions that are symmetric in their factors, in the place of all."""
    names = {name: f"{CONTRACTION}.{name}" for name in ("U_matrix_2", "weights_max")}
    functions, weights = golden[names["U_matrix_2"]], golden[names["weights_max"]]
    symmetric = 0.5 * (functions + functions.swapaxes(1, 2)).reshape(-1, functions.shape[-1])
    left, values, right = np.linalg.svd(symmetric, full_matrices=False)
    rank = int((values > 1e-10).sum())
    assert rank < functions.shape[-1]
    reduced = {
        names["U_matrix_2"]: left[:, :rank].reshape(*functions.shape[:-1], rank),
        names["weights_max"]: np.einsum("rp,spc->src", values[:rank, None] * right[:rank], weights),
    }
    energies, forces = predicted(found_in(golden | reduced), structures_of(golden))
    assert_same(energies, golden["energy"])
    assert_same(forces, golden["forces"])


def test_a_network_without_scale_and_shift_has_those_of_hyper(golden: Arrays) -> None:
    bare = {name: array for name, array in golden.items() if "scale_shift" not in name and "atomic_energies" not in name}
    one, other = found_in(golden), found_in(bare)
    assert (one.scale, one.self_energies) == (other.scale, other.self_energies)
    changed = found_in(bare, atomic_inter_scale=2.0, atomic_inter_shift=1.0, atomic_energies=[-1.0, -2.0, -3.0, -4.0])
    assert (changed.scale, changed.self_energies) == (2.0, {1: -3.0, 6: -2.0, 8: -1.0, 14: 0.0})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other irreps": ({"hidden_irreps": "3x0e+3x1o+3x2o"}, "hidden_irreps: must be as many channels of 0e, 1o, 2e"),
    "other widths": ({"hidden_irreps": "3x0e+2x1o"}, "hidden_irreps: must be as many channels of 0e, 1o, 2e"),
    "a gated readout": ({"MLP_irreps": "16x0e+16x1o"}, "MLP_irreps: must be scalars"),
    "one layer": ({"num_interactions": 1}, "num_interactions: must be .* 2"),
    "another block": ({"interaction": "RealAgnosticDensityInteractionBlock"}, "hyper.interaction: "),
    "too few energies": ({"atomic_energies": [1.0]}, "atomic_energies: must have one energy for each of atomic_numbers"),
    "another cutoff": ({"r_max": 5.0}, r"w/r_max: must be 5.0 by hyper \(is 4.1\)"),
    "another order": ({"correlation": 3}, "products.0.symmetric_contractions.contractions.0.weights.1: missing|U_matrix_3"),
    "other harmonics": ({"max_ell": 3}, "must have the shape"),
    "an unknown option": ({"num_heads": 2}, "hyper.num_heads: no option that can be imported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hyper_parameters_of_another_network_are_refused(case: str, golden: Arrays) -> None:
    hyper, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        found_in(golden, **hyper)


WRONG: dict[str, tuple[str, np.ndarray, str]] = {
    "two heads": ("scale_shift.scale", np.ones(2), r"scale_shift.scale: must be one number \(has 2\)"),
    "energies of two heads": ("atomic_energies_fn.atomic_energies", np.ones((2, 4)), r"has 8\): networks of several heads"),
    "zeroed functions": (f"{CONTRACTION[2:]}.weights_max_zeroed", np.array(True), "weights_max_zeroed: must be False by hyper"),
    "an unknown part": ("pair_repulsion_fn.a_exp", np.array(0.3), "pair_repulsion_fn.a_exp: no part of a MACE"),
    "other functions": (f"{CONTRACTION[2:]}.U_matrix_1", np.ones((3, 9, 1)), "U_matrix_1: must be couplings of harmonics"),
    "functions of others": (
        f"{CONTRACTION[2:]}.U_matrix_1",
        np.ones((3, 16, 1)),
        "must be products of 1 harmonics of degrees up to 2",
    ),
    "weights of other functions": (f"{CONTRACTION[2:]}.weights_max", np.ones((4, 9, 3)), r"must have the shape \(4, 4, 3\)"),
    "other coefficients": (
        "interactions.1.conv_tp._compiled_main_left_right._w3j_1_2_1",
        np.ones((3, 5, 3)),
        "must be the coupling coefficients of e3nn",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_not_what_they_should_be_are_refused(case: str, golden: Arrays) -> None:
    name, array, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        found_in(golden | {f"w/{name}": array})
