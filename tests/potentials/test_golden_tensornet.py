"""TensorNet gives the numbers of the code that its weights come from (float64, energies, forces, stress)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden import RELATIVE, graph_of, potential_from, read, relative_error

from modelforge.importing import torchmdnet
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.tensornet import TensorNet, TensorNetSection

STORED_SINGLE = 3e-7  # absolute; the float64 results of the package are 1.4e-7 away from the float32 numbers that it stores


def test_random_weights_give_the_reference_energies_forces_and_stress(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "tensornet_random_o3.npz")
    potential = potential_from(golden, torchmdnet.imported)
    prediction = EnergyModel(potential).double().eval()(graph_of(golden, potential.cutoff), stress=True)
    assert np.isfinite(golden["stress"]).any()
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress"]) < RELATIVE


def test_a_total_charge_strengthens_the_products(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "tensornet_random_o3.npz")
    potential = potential_from(golden, torchmdnet.imported)
    graph = graph_of(golden, potential.cutoff)
    charged = replace(graph, total_charge=torch.ones_like(graph.total_charge))
    prediction = EnergyModel(potential).double().eval()(charged, stress=True)
    assert relative_error(torch.from_numpy(golden["forces_charge1"]), golden["forces"]) > 1e-4
    assert relative_error(prediction.energy, golden["energy_charge1"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces_charge1"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress_charge1"]) < RELATIVE


def test_the_numbers_that_the_package_tests_itself_with(shared_data: Path) -> None:
    """256 features and three layers: its float64 results, and what its own test stores in float32."""
    golden = read(shared_data / "golden" / "tensornet_expected_f32.npz")
    potential = potential_from(golden, torchmdnet.imported)
    prediction = EnergyModel(potential).double().eval()(graph_of(golden, potential.cutoff))
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert np.abs(prediction.energy.numpy() - golden["expected_energy_f32"]).max() < STORED_SINGLE
    assert np.abs(prediction.forces.numpy() - golden["expected_forces_f32"]).max() < STORED_SINGLE


@pytest.mark.parametrize("activation", ["tanh", "shifted_softplus"])
def test_every_activation_is_used_in_all_layers(activation: str) -> None:
    section = TensorNetSection(name="tensornet", num_features=4, num_radial=4, activation=activation)
    kinds = [type(module).__name__ for module in TensorNet(section, (1, 6)).modules()]
    chosen = {"tanh": "Tanh", "shifted_softplus": "ShiftedSoftplus"}[activation]
    assert kinds.count(chosen) == 2 + 3 * section.num_layers + 2
    assert "SiLU" not in kinds
