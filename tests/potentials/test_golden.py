"""SchNet and PaiNN give the numbers of the code that their weights come from (float64, energies, forces, stress)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modelforge.atoms.graph import AtomicGraph, Reach
from modelforge.data.batching.batches import structure_table
from modelforge.data.structures import Structures
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.painn import PaiNN, PaiNNSection
from modelforge.potentials.schnet import SchNet, SchNetSection

RELATIVE = 1e-10  # of the largest value; the reference itself is exact to about 1e-15


def structures_of(golden: dict[str, np.ndarray]) -> Structures:
    num_atoms = golden["n_atoms"]
    num, total = len(num_atoms), int(num_atoms.sum())
    zeros = np.zeros(num, dtype=int)
    return Structures(
        num_atoms=num_atoms,
        atomic_numbers=golden["atomic_numbers"],
        positions=golden["positions"].astype(float),
        cell=golden.get("cell", np.zeros((num, 3, 3))),
        periodic=golden.get("pbc", np.zeros((num, 3), dtype=bool)),
        energy=np.full(num, np.nan),
        forces=np.full((total, 3), np.nan),
        stress=np.full((num, 3, 3), np.nan),
        group=zeros,
        subset=zeros,
        file=zeros,
        index_in_file=np.arange(num),
    )


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def graph_of(golden: dict[str, np.ndarray], cutoff: float) -> AtomicGraph:
    structures = structures_of(golden)
    table = structure_table(structures, reach=Reach(cutoff), self_energies=np.zeros(120), dtype=torch.float64)
    return table.batch(torch.arange(len(structures))).graph


def head_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {"0": "0", "1": "2"}
    return {
        f"readout.{renamed[layer]}.{kind}": weights[f"output_modules.0.outnet.{layer}.{kind}"]
        for layer in renamed
        for kind in ("weight", "bias")
    }


def weights_of(golden: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key[2:]: torch.as_tensor(value).double() for key, value in golden.items() if key.startswith("w/")}


def embedding(weights: dict[str, torch.Tensor], elements: tuple[int, ...]) -> torch.Tensor:
    return weights["representation.embedding.weight"][list(elements)]


def radial_constants(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "representation.radial_basis.freqs" in weights:
        return {"radial_basis.frequencies": weights["representation.radial_basis.freqs"]}
    return {
        "radial_basis.centres": weights["representation.radial_basis.offsets"],
        "radial_basis.widths": weights["representation.radial_basis.widths"],
    }


def layers(weights: dict[str, torch.Tensor], theirs: str, ours: str) -> dict[str, torch.Tensor]:
    return {
        f"{ours}.{our}.{kind}": weights[f"{theirs}.{their}.{kind}"]
        for their, our in (("0", "0"), ("1", "2"))
        for kind in ("weight", "bias")
    }


def painn_from(golden: dict[str, np.ndarray]) -> PaiNN:
    hyper, weights = json.loads(str(golden["hyper"])), weights_of(golden)
    section = PaiNNSection(
        name="painn",
        cutoff=hyper["cutoff"],
        num_features=hyper["n_atom_basis"],
        num_layers=hyper["n_interactions"],
        num_radial=hyper["n_rbf"],
        radial_basis=hyper.get("radial_basis", "gaussian"),
        shared_filters=hyper.get("shared_filters", False),
    )
    elements = tuple(np.unique(golden["atomic_numbers"]).tolist())
    state = {"embedding.weight": embedding(weights, elements)} | radial_constants(weights) | head_weights(weights)
    state |= {f"filters.{kind}": weights[f"representation.filter_net.{kind}"] for kind in ("weight", "bias")}
    for t in range(section.num_layers):
        old = f"representation.interactions.{t}.interatomic_context_net"
        state |= layers(weights, old, f"messages.{t}.context")
        state |= layers(weights, f"representation.mixing.{t}.intraatomic_context_net", f"mixings.{t}.context")
        mix = weights[f"representation.mixing.{t}.mu_channel_mix.weight"]
        state[f"mixings.{t}.vector_channels.weight"] = mix
    potential = PaiNN(section, elements).double()
    potential.load_state_dict(state)
    return potential


def schnet_from(golden: dict[str, np.ndarray]) -> SchNet:
    hyper, weights = json.loads(str(golden["hyper"])), weights_of(golden)
    section = SchNetSection(
        name="schnet",
        cutoff=hyper["cutoff"],
        num_features=hyper["n_atom_basis"],
        num_filters=hyper["n_filters"],
        num_layers=hyper["n_interactions"],
        num_radial=hyper["n_rbf"],
        radial_basis=hyper.get("radial_basis", "gaussian"),
    )
    elements = tuple(np.unique(golden["atomic_numbers"]).tolist())
    state = {"embedding.weight": embedding(weights, elements)} | radial_constants(weights) | head_weights(weights)
    for t in range(section.num_layers):
        old = f"representation.interactions.{t}"
        state |= layers(weights, f"{old}.filter_network", f"interactions.{t}.filter_network")
        state |= layers(weights, f"{old}.f2out", f"interactions.{t}.features_out")
        state[f"interactions.{t}.features_in.weight"] = weights[f"{old}.in2f.weight"]
    potential = SchNet(section, elements).double()
    potential.load_state_dict(state)
    return potential


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    known = np.isfinite(theirs)
    return float(np.abs(ours.numpy() - theirs)[known].max() / np.abs(theirs[known]).max())


@pytest.mark.parametrize(("file", "rebuild"), [("schnet_random", schnet_from), ("painn_random", painn_from)])
def test_random_weights_give_the_reference_energies_forces_and_stress(file, rebuild, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = rebuild(golden)
    graph = graph_of(golden, potential.cutoff)
    prediction = EnergyModel(potential).double().eval()(graph, stress=True)
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress"]) < RELATIVE


def test_painn_trained_on_ethanol_gives_the_published_errors(shared_data):
    golden = read(shared_data / "golden" / "painn_ethanol_1.npz")
    potential = painn_from(golden)
    prediction = EnergyModel(potential).double().eval()(graph_of(golden, potential.cutoff))
    assert relative_error(prediction.energy, golden["energy_net"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    forces_mae = float(np.abs(prediction.forces.numpy() - golden["label_forces"]).mean())
    assert forces_mae == pytest.approx(0.1716, abs=5e-5)  # kcal/mol/angstrom
    energy = prediction.energy.numpy() + golden["mean_per_atom"] * golden["n_atoms"]
    assert float(np.abs(energy - golden["label_energy"]).mean()) == pytest.approx(0.0251, abs=5e-5)
