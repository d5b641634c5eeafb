"""SchNet and PaiNN give the numbers of the code that their weights come from (float64, energies, forces, stress)."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from golden_files import read, structures_of

from modelforge.atoms.graph import AtomicGraph, Reach
from modelforge.data.batching.batches import structure_table
from modelforge.importing import schnetpack
from modelforge.importing.imported import ImportedPotential
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.potential import Potential

RELATIVE = 1e-10  # of the largest value; the reference itself is exact to about 1e-15


def graph_of(golden: dict[str, np.ndarray], cutoff: float) -> AtomicGraph:
    structures = structures_of(golden)
    table = structure_table(structures, reach=Reach(cutoff), self_energies=np.zeros(120), dtype=torch.float64)
    return table.batch(torch.arange(len(structures))).graph


def arrays_of(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key[2:]: value for key, value in golden.items() if key.startswith("w/")}


def potential_from(
    golden: dict[str, np.ndarray], imported: Callable[[dict[str, object], dict[str, np.ndarray]], ImportedPotential]
) -> Potential:
    """The network of a file in double precision."""
    found = imported(json.loads(str(golden["hyper"])), arrays_of(golden))
    potential = found.section.build(found.elements).double()
    potential.load_state_dict(found.state)
    return potential


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    known = np.isfinite(theirs)
    return float(np.abs(ours.numpy() - theirs)[known].max() / np.abs(theirs[known]).max())


@pytest.mark.parametrize("file", ["schnet_random", "painn_random"])
def test_random_weights_give_the_reference_energies_forces_and_stress(file, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = potential_from(golden, schnetpack.imported)
    graph = graph_of(golden, potential.cutoff)
    prediction = EnergyModel(potential).double().eval()(graph, stress=True)
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress"]) < RELATIVE


def test_painn_trained_on_ethanol_gives_the_published_errors(shared_data):
    golden = read(shared_data / "golden" / "painn_ethanol_1.npz")
    potential = potential_from(golden, schnetpack.imported)
    prediction = EnergyModel(potential).double().eval()(graph_of(golden, potential.cutoff))
    assert relative_error(prediction.energy, golden["energy_net"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    forces_mae = float(np.abs(prediction.forces.numpy() - golden["label_forces"]).mean())
    assert forces_mae == pytest.approx(0.1716, abs=5e-5)  # kcal/mol/angstrom
    energy = prediction.energy.numpy() + golden["mean_per_atom"] * golden["n_atoms"]
    assert float(np.abs(energy - golden["label_energy"]).mean()) == pytest.approx(0.0251, abs=5e-5)
