"""NequIP gives the numbers of its authors' package (float64), and has as many weights. About 3 s."""

import pytest
from golden_files import read
from test_golden import RELATIVE, graph_of, potential_from, relative_error

from modelforge.importing import nequip
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.nequip import NequIPSection

FILES = ("nequip_l1_noparity", "nequip_l2_parity", "nequip_l1_parity_4layers", "nequip_l2_parity_4layers")
NUMBERS = {1: "H", 6: "C", 8: "O", 14: "Si"}


@pytest.mark.parametrize("file", FILES)
def test_random_weights_give_the_reference_energies_forces_and_stress(file, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = potential_from(golden, nequip.imported)
    graph = graph_of(golden, potential.cutoff)
    prediction = EnergyModel(potential).double().eval()(graph, stress=True)
    shifts = dict(zip(golden["type_names"].tolist(), golden["per_type_energy_shifts"].tolist(), strict=True))
    of_atoms = [shifts[NUMBERS[number]] for number in golden["atomic_numbers"].tolist()]
    assert relative_error(potential(graph).energies.detach(), golden["atomic_energy"] - of_atoms) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(prediction.stress, golden["stress"]) < RELATIVE


KNOWN = {  # l_max, features, parity, layers, numbers of an element: number of weights of the authors' network
    (1, 32, True, 4, None): 438_400,
    (2, 32, True, 4, None): 849_024,
    (2, 32, False, 4, None): 532_608,
    (3, 64, True, 5, None): 12_526_848,
}


@pytest.mark.parametrize("sizes", KNOWN, ids=str)
def test_there_are_as_many_weights_as_in_the_authors_network(sizes):
    l_max, num_features, parity, num_layers, num_embedding = sizes
    section = NequIPSection(
        name="nequip",
        l_max=l_max,
        parity=parity,
        num_features=num_features,
        num_layers=num_layers,
        num_embedding=num_embedding,
        avg_num_neighbors=12.0,
    )
    assert sum(weight.numel() for weight in section.build((1, 6, 8)).parameters()) == KNOWN[sizes]
