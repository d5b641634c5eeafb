"""TensorNet gives the numbers of the code that its weights come from (float64, energies, forces, stress)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden import RELATIVE, graph_of, read, relative_error, weights_of

from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.tensornet import TensorNet, TensorNetSection

STORED_SINGLE = 3e-7  # absolute; the float64 results of the package are 1.4e-7 away from the float32 numbers that it stores
EMBEDDING = "representation_model.tensor_embedding"
NAMES = {
    "embedding.norm": f"{EMBEDDING}.init_norm",
    "embedding.scales.0": f"{EMBEDDING}.linears_scalar.0",
    "embedding.scales.2": f"{EMBEDDING}.linears_scalar.1",
    "readout.0": "representation_model.out_norm",
    "readout.1": "representation_model.linear",
    "readout.3": "output_model.output_network.layers.0",
    "readout.5": "output_model.output_network.layers.2",
}


def tensornet_state(
    weights: dict[str, torch.Tensor], elements: tuple[int, ...], *, num_layers: int, cutoff: float
) -> dict[str, torch.Tensor]:
    """Our state from that of TorchMD-Net 3 (model tensornet, output Scalar), for these elements."""
    names = NAMES | {
        f"interactions.{t}.filters.{2 * n}": f"representation_model.layers.{t}.linears_scalar.{n}"
        for t in range(num_layers)
        for n in range(3)
    }
    state = {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")}
    for n in range(3):
        state[f"embedding.mixing.layers.{n}.weight"] = weights[f"{EMBEDDING}.linears_tensor.{n}.weight"]
        for t in range(num_layers):
            theirs = f"representation_model.layers.{t}.linears_tensor"
            state[f"interactions.{t}.mixing_before.layers.{n}.weight"] = weights[f"{theirs}.{n}.weight"]
            state[f"interactions.{t}.mixing_after.layers.{n}.weight"] = weights[f"{theirs}.{n + 3}.weight"]
    for kind in ("weight", "bias"):
        projections = [weights[f"{EMBEDDING}.distance_proj{n}.{kind}"] for n in (1, 2, 3)]
        state[f"embedding.filters.{kind}"] = torch.cat(projections)
    receivers, senders = weights[f"{EMBEDDING}.emb2.weight"].chunk(2, dim=1)
    state |= {"embedding.receivers.weight": receivers, "embedding.senders.weight": senders}
    state["embedding.receivers.bias"] = weights[f"{EMBEDDING}.emb2.bias"]
    state["embedding.elements.weight"] = weights[f"{EMBEDDING}.emb.weight"][list(elements)]
    return state | radial_constants(weights, cutoff=cutoff)


def radial_constants(weights: dict[str, torch.Tensor], *, cutoff: float) -> dict[str, torch.Tensor]:
    """Those of the file, or exact ones."""
    theirs = "representation_model.distance_expansion"
    num_radial = weights[f"{EMBEDDING}.distance_proj1.weight"].shape[1]
    lowest = float(np.exp(-cutoff))
    centres = torch.linspace(lowest, 1.0, num_radial, dtype=torch.float64)
    steepness = torch.full_like(centres, (2.0 / num_radial * (1.0 - lowest)) ** -2)
    return {
        "radial_basis.centres": weights.get(f"{theirs}.means", centres),
        "radial_basis.steepness": weights.get(f"{theirs}.betas", steepness),
    }


def tensornet_from(golden: dict[str, np.ndarray]) -> TensorNet:
    hyper, weights = json.loads(str(golden["hyper"])), weights_of(golden)
    section = TensorNetSection(
        name="tensornet",
        cutoff=hyper["cutoff"],
        num_features=hyper["hidden_channels"],
        num_layers=hyper["num_layers"],
        num_radial=hyper["num_rbf"],
    )
    elements = tuple(np.unique(golden["atomic_numbers"]).tolist())
    potential = TensorNet(section, elements).double()
    potential.load_state_dict(tensornet_state(weights, elements, num_layers=section.num_layers, cutoff=section.cutoff))
    return potential


def test_random_weights_give_the_reference_energies_forces_and_stress(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "tensornet_random_o3.npz")
    potential = tensornet_from(golden)
    prediction = EnergyModel(potential).double().eval()(graph_of(golden, potential.cutoff), stress=True)
    assert np.isfinite(golden["stress"]).any()
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress"]) < RELATIVE


def test_the_numbers_that_the_package_tests_itself_with(shared_data: Path) -> None:
    """256 features and three layers: its float64 results, and what its own test stores in float32."""
    golden = read(shared_data / "golden" / "tensornet_expected_f32.npz")
    potential = tensornet_from(golden)
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
