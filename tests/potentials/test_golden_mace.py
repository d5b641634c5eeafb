"""MACE gives the numbers of mace-torch (float64), and has as many weights. About 3 s."""

import json

import pytest
import torch
from golden_files import read
from test_golden import RELATIVE, arrays_of, graph_of, potential_from, relative_error

from modelforge.importing import mace
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.mace import MACESection

FILES = ("mace_L0_nu2", "mace_L1_nu3", "mace_L1_nu2_plainfirst")


@pytest.mark.parametrize("file", FILES)
def test_random_weights_give_the_reference_energies_forces_and_stress(file, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = potential_from(golden, mace.imported)
    graph = graph_of(golden, potential.cutoff)
    prediction = EnergyModel(potential).double().eval()(graph, stress=True)
    scale, shift = float(golden["scale"]), float(golden["shift"])
    interaction = golden["interaction_energy"] - shift * golden["n_atoms"]
    assert relative_error(scale * prediction.energy, interaction) < RELATIVE
    assert relative_error(scale * prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(scale * prediction.stress, golden["stress"]) < RELATIVE


def test_energies_of_atoms_are_the_reference(shared_data):
    """With the self-energies, into which the importer brings the shift."""
    golden = read(shared_data / "golden" / "mace_L1_nu3.npz")
    found = mace.imported(json.loads(str(golden["hyper"])), arrays_of(golden))
    potential = potential_from(golden, mace.imported)
    energies = found.scale * potential(graph_of(golden, potential.cutoff)).energies.detach()
    own = torch.tensor([found.self_energies[number] for number in golden["atomic_numbers"].tolist()], dtype=torch.float64)
    assert relative_error(energies + own, golden["atomic_energy"]) < RELATIVE


PUBLISHED = {  # channels, l_max, elements, first interaction: number of weights
    (256, 2, 3, "residual"): 2_803_984,
    (256, 2, 3, "plain"): 3_393_808,
    (128, 1, 3, "residual"): 604_432,
    (128, 1, 3, "plain"): 751_888,
    (128, 0, 3, "residual"): 401_936,
    (64, 0, 4, "residual"): 147_792,
}


@pytest.mark.parametrize("sizes", PUBLISHED, ids=str)
def test_there_are_as_many_weights_as_published(sizes):
    num_channels, l_max, num_elements, first = sizes
    section = MACESection(name="mace", num_channels=num_channels, l_max=l_max, first_interaction=first, avg_num_neighbors=12.0)
    potential = section.build(range(1, num_elements + 1))
    assert sum(weight.numel() for weight in potential.parameters()) == PUBLISHED[sizes]
