"""NequIP networks of other sizes than the golden files, and what cannot be imported. About 1 s.

`written/nequip_*.npz` were written beside nequip 0.19.1: random weights, hyper-parameters as its checkpoints keep them;
energies and forces are its own. One has degrees up to 3 of the natural parity, types in descending order with a scale
each, deep radial networks and Bessel frequencies that were changed; the other both parities, one scale for all types and
no shifts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import read, structures_of

from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.import_model import trained_potential
from modelforge.importing.imported import ImportedPotential
from modelforge.importing.nequip import imported

RELATIVE = 1e-10  # of the largest value
WRITTEN = Path(__file__).parent / "written"
FILES = ("nequip_l3", "nequip_l2_one_scale")
PRODUCT = "w/model.func.layer1_convnet.conv.tp_scatter.tp._compiled_main_left_right"
SCALES = "w/model.func.per_type_energy_scale_shift.scales"
CUTOFF = "w/model.func.edge_norm._rmax_recip"
TABLES = {"n_atoms": 1, "atomic_numbers": 4, "positions": 4, "cell": 1, "pbc": 1, "energy": 1, "forces": 4}
"""Arrays of a file, and how many rows of each are the first structure, hydrogen peroxide."""
Arrays = dict[str, np.ndarray]


@pytest.fixture
def golden() -> Arrays:
    return read(WRITTEN / "nequip_l3.npz")


def found_in(golden: Arrays, **hyper: Any) -> ImportedPotential:
    weights = {name[2:]: array for name, array in golden.items() if name.startswith("w/")}
    return imported({**json.loads(str(golden["hyper"])), **hyper}, weights)


def largest_difference(golden: Arrays, found: ImportedPotential) -> float:
    """Of energies and forces, relative to the largest."""
    evaluation = evaluate(trained_potential(found, origin="x", dtype=torch.float64), structures_of(golden))
    pairs = ((evaluation.energy, golden["energy"]), (evaluation.forces, golden["forces"]))
    return max(float(np.abs(got - expected).max() / np.abs(expected).max()) for got, expected in pairs)


@pytest.mark.parametrize("file", FILES)
def test_networks_of_other_sizes_give_the_energies_and_forces_of_nequip(file: str) -> None:
    golden = read(WRITTEN / f"{file}.npz")
    assert largest_difference(golden, found_in(golden)) < RELATIVE


def test_scales_and_shifts_may_be_in_hyper_alone(golden: Arrays) -> None:
    rest = {name: array for name, array in golden.items() if "scale_shift" not in name}
    trained = dict(zip(("Si", "O", "C", "H"), golden[SCALES].ravel().tolist(), strict=True))
    assert largest_difference(golden, found_in(rest, per_type_energy_scales=trained)) < RELATIVE
    in_order = found_in(rest, per_type_energy_scales=list(trained.values()), per_type_energy_shifts=[-3.5, -2.5, -1.5, -0.5])
    assert largest_difference(golden, in_order) < RELATIVE
    assert largest_difference(golden, found_in(rest)) > RELATIVE  # those of hyper are from before the training


def test_some_of_the_types_give_the_same(golden: Arrays) -> None:
    found = found_in(golden, elements=["H", "O"])
    assert found.elements == (1, 8)
    peroxide = {name: golden[name][:num_rows] for name, num_rows in TABLES.items()}
    assert set(peroxide["atomic_numbers"]) == {1, 8}
    assert largest_difference(peroxide, found) < RELATIVE


def test_coupling_coefficients_of_the_other_sign_are_brought_into_the_weights(golden: Arrays) -> None:
    coefficients, radial = f"{PRODUCT}._w3j_1_2_1", "w/model.func.layer1_convnet.conv.edge_mlp.mlp.4.weight"
    changed = {name: golden[name].copy() for name in (coefficients, radial)}
    degrees = range(4)
    paths = [(a, b, c) for a in degrees for b in degrees for c in degrees if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0]
    assert len(paths) * 2 == changed[radial].shape[1]  # two channels
    place = paths.index((1, 2, 1))
    changed[radial][:, 2 * place : 2 * place + 2] *= -1
    changed[coefficients] *= -1
    assert largest_difference(golden, found_in(golden | changed)) < RELATIVE
    for name in changed:  # one of the two alone is another network
        assert largest_difference(golden, found_in(golden | {name: changed[name]})) > RELATIVE


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ZBL": ({"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL"}}, "hyper.pair_potential: networks with one cannot"),
    "a cutoff for each pair": ({"per_edge_type_cutoff": {"H": 3.0}}, "hyper.per_edge_type_cutoff: networks with one cannot"),
    "neighbours of each type": (
        {"avg_num_neighbors": {"H": 3.0, "C": 4.0, "O": 5.0, "Si": 6.0}},
        r"hyper.avg_num_neighbors: must be a number greater than 0 \(got a table\)",
    ),
    "other widths": ({"num_features": [4, 2, 2, 2]}, r"hyper.num_features: must be the same for all .*\[4, 2, 2, 2\]\)"),
    "a readout with layers": ({"readout_mlp_hidden_layers_depth": 1}, "hyper.readout_mlp_hidden_layers_depth: must be 0"),
    "another model": (
        {"model": "nequip.model.PresetNequIPGNNModel"},
        "hyper.model: unknown choice 'nequip.model.PresetNequIPGNNModel'",
    ),
    "an unknown option": ({"convnet_sc": True}, "hyper.convnet_sc: no option that can be imported"),
    "another cutoff": ({"r_max": 5.0}, r"edge_norm._rmax_recip: must be 1/r_max by hyper, 0.2 \(is 0.222222\)"),
    "types that are no elements": ({"type_names": ["Si", "O", "C", "Hx"]}, r"type_names: must be symbols .*\(got Hx\)"),
    "fewer types": (
        {"type_names": ["Si", "O", "C"], "per_type_energy_scales": None, "per_type_energy_shifts": None},
        r"type_embed.embed_module.weight: must have the shape \(3, 3\)",
    ),
    "scales of other types": (
        {"per_type_energy_scales": {"H": 1.0}},
        "hyper.per_type_energy_scales: must have one number for each of type_names",
    ),
    "too few shifts": ({"per_type_energy_shifts": [1.0]}, "hyper.per_type_energy_shifts: must have one number for each"),
    "both parities": ({"parity": True}, "must have the shape"),
    "more layers": ({"num_layers": 4}, "must have the shape|layer3_convnet.* missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hyper_parameters_of_another_network_are_refused(case: str, golden: Arrays) -> None:
    hyper, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        found_in(golden, **hyper)


WRONG: dict[str, tuple[str, np.ndarray, str]] = {
    "a cutoff for each pair": (CUTOFF, np.full(16, 0.25), "_rmax_recip: networks with a cutoff for each pair of types cannot"),
    "scales of other types": (SCALES, np.ones((3, 1)), r"scales: must be one number or 4 by hyper \(has 3\)"),
    "ZBL": ("w/model.func.pair_potential.atomic_numbers", np.ones(4), "pair_potential.atomic_numbers: no part of a NequIP"),
    "other coefficients": (f"{PRODUCT}._w3j_1_2_1", np.ones((3, 5, 3)), "must be the coupling coefficients of e3nn"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_not_what_they_should_be_are_refused(case: str, golden: Arrays) -> None:
    name, array, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        found_in(golden | {name: array})
