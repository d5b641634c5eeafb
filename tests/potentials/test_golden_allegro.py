"""Allegro gives the numbers of its authors' package (float64), and has as many weights. About 1 s."""

import pytest
from golden_files import read
from test_golden import RELATIVE, graph_of, potential_from, relative_error

from modelforge.importing import allegro
from modelforge.potentials.allegro import AllegroSection
from modelforge.potentials.energy_model import EnergyModel

FILES = ("allegro_l1_noparity", "allegro_l2_parity")
NUM_WEIGHTS = 34_400  # which the authors' network of these sizes has
SIZES = {"num_scalar_features": 32, "num_tensor_features": 16, "scalar_embed_hidden": (32, 32), "mlp_hidden": (64, 64)}


@pytest.mark.parametrize("file", FILES)
def test_random_weights_give_the_reference_energies_forces_and_stress(file, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = potential_from(golden, allegro.imported)
    graph = graph_of(golden, potential.cutoff)
    prediction = EnergyModel(potential).double().eval()(graph, stress=True)
    shifts = dict(zip(golden["type_names"].tolist(), golden["per_type_energy_shifts"].tolist(), strict=True))
    of_atoms = [shifts[{1: "H", 6: "C", 8: "O", 14: "Si"}[number]] for number in golden["atomic_numbers"].tolist()]
    expected = golden["atomic_energy"] - of_atoms
    assert relative_error(potential(graph).energies.detach(), expected) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress"]) < RELATIVE


def test_there_are_as_many_weights_as_in_the_authors_network():
    section = AllegroSection(name="allegro", avg_num_neighbors=12.0, **SIZES)
    potential = section.build((1, 6, 8))
    assert sum(weight.numel() for weight in potential.parameters()) == NUM_WEIGHTS
