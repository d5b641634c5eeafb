"""ANI gives the numbers of NeuroChem and of TorchANI with their weights (float64). About 0.5 s in all."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of
from test_golden import RELATIVE, read, relative_error, structures_of

from modelforge.atoms.graph import AtomicGraph
from modelforge.data.batching.batches import structure_table
from modelforge.importing.imported import ImportedPotential
from modelforge.importing.torchani import columns_of, imported
from modelforge.potentials.ani import ANI, ANISection
from modelforge.potentials.energy_model import EnergyModel

Golden = dict[str, np.ndarray]
SINGLE_AEV = 5e-6  # absolute; NeuroChem computes in float32, and TorchANI is 4e-6 away from it
SINGLE_ENERGY = 3e-4  # eV; float32 numbers of 8000 eV
SINGLE_FORCES = 5e-5  # eV/angstrom
NEUROCHEM_HARTREE = 27.21138505  # eV
KCAL_MOL = 627.5094738898777  # per hartree, of the diatomics
SETS = {"ani1x": ("ani1x_weights_0.npz", "ani1x_neurochem.npz"), "ani2x": ("ani2x_weights_0.npz", "ani2x_reference_0.npz")}
ANI2X = (1, 6, 7, 8, 16, 9, 17)  # in the published order
METHANE = [
    (0.03192167, 0.00638559, 0.01301679),
    (-0.83140486, 0.39370209, -0.26395324),
    (-0.66518241, -0.84461308, 0.20759389),
    (0.45554739, 0.54289633, 0.81170881),
    (0.66091919, -0.16799635, -0.91037834),
]
METHANE_SUMS = (14.512960624774545, 9.630936647659025, 8.242628621107253, 7.3653025878726694, 7.176295250166649)
METHANE_CARBON = {
    0: 0.23610145740889016,
    1: 0.838530618448433,
    2: 0.2450063976618367,
    3: 0.005197726783052513,
    4: 7.127188632109251e-06,
    112: 0.015836582179643927,
    113: 0.7726218300282799,
    114: 2.559829887373101,
    115: 0.27869159367447716,
    116: 0.03187890470549943,
    117: 1.6249524516795444,
    118: 5.997777964077063,
    119: 0.6920332266140674,
    120: 0.0037267723944301983,
    121: 0.20751563186893093,
    122: 0.886273195645677,
    123: 0.1061287461607438,
    124: 2.5327374220047484e-05,
    125: 0.0016311641510437676,
    126: 0.008193920480686125,
    127: 0.000994037336357241,
    130: 4.687118937199242e-06,
}


class Published:
    """A published network, the structures of its reference, and what our code says of them."""

    def __init__(self, folder: Path, name: str) -> None:
        weights, self.golden = (read(folder / "golden" / file) for file in SETS[name])
        hyper = json.loads(str(weights["hyper"]))
        self.made: ImportedPotential = imported(hyper, {k[2:]: v for k, v in weights.items() if k.startswith("w/")})
        self.weights, self.hyper, self.section = weights, hyper, self.made.section
        self.potential = ANI(self.section, self.made.elements).double()
        self.potential.load_state_dict(self.made.state)
        self.graph = graph_of(self.golden, self.potential)
        self.prediction = EnergyModel(self.potential).double().eval()(self.graph, stress=True)  # in hartree
        self.constants = np.array(
            [self.made.self_energies[z] / self.made.scale for z in self.golden["atomic_numbers"].tolist()]
        )
        self.energy = self.prediction.energy.numpy() + np.add.reduceat(
            self.constants, np.cumsum(self.golden["n_atoms"]) - self.golden["n_atoms"]
        )


def graph_of(golden: Golden, potential: ANI) -> AtomicGraph:
    structures = structures_of(golden)
    table = structure_table(structures, reach=potential.reach, self_energies=np.zeros(120), dtype=torch.float64)
    return table.batch(torch.arange(len(structures))).graph


def published_aev(potential: ANI, graph: AtomicGraph, species: tuple[int, ...]) -> np.ndarray:
    """The AEV in the published order of the elements."""
    ours = torch.cat(potential.aev(graph), dim=1).detach().numpy()
    section = potential.constants
    num_angular = section.num_shells * section.num_angles
    theirs = np.empty_like(ours)
    theirs[:, columns_of(species, sorted(species), num_radial=section.num_radial, num_angular=num_angular)] = ours
    return theirs


@cache
def load(folder: Path, name: str) -> Published:
    return Published(folder, name)


@pytest.fixture(params=SETS)
def published(request, shared_data: Path) -> Published:
    return load(shared_data, request.param)


@pytest.fixture
def ani1x(shared_data: Path) -> Published:
    return load(shared_data, "ani1x")


@pytest.fixture
def ani2x(shared_data: Path) -> Published:
    return load(shared_data, "ani2x")


def test_energies_forces_and_atomic_energies_are_those_of_torchani(published: Published):
    golden = published.golden
    atomic = published.potential(published.graph).energies.detach().numpy() + published.constants
    assert relative_error(torch.from_numpy(atomic), golden["atomic_energy"]) < RELATIVE
    assert relative_error(torch.from_numpy(published.energy), golden["energy"]) < RELATIVE
    assert relative_error(published.prediction.forces, golden["forces"]) < RELATIVE


def test_symmetry_functions_and_stress_are_those_of_torchani(ani2x: Published):
    aev = published_aev(ani2x.potential, ani2x.graph, ANI2X)
    assert np.abs(aev - ani2x.golden["aev"]).max() < 1e-12
    assert np.isfinite(ani2x.golden["stress"]).any()
    assert relative_error(ani2x.prediction.stress, ani2x.golden["stress"]) < RELATIVE


def test_symmetry_functions_energies_and_forces_are_those_of_neurochem(ani1x: Published):
    """To the single precision of that program."""
    golden = ani1x.golden
    aev = published_aev(ani1x.potential, ani1x.graph, (1, 6, 7, 8))
    assert np.abs(aev[:, :64] - golden["neurochem_aev_radial"]).max() < SINGLE_AEV
    assert np.abs(aev[:, 64:] - golden["neurochem_aev_angular"]).max() < SINGLE_AEV
    assert np.abs(ani1x.energy * NEUROCHEM_HARTREE - golden["neurochem_energy_eV"]).max() < SINGLE_ENERGY
    forces = ani1x.prediction.forces.numpy() * NEUROCHEM_HARTREE
    assert np.abs(forces - golden["neurochem_forces_eV_A"]).max() < SINGLE_FORCES


def test_diatomics_have_the_energies_that_torchani_tests_itself_with(ani2x: Published):
    difference = ani2x.energy[1:5] * KCAL_MOL - ani2x.golden["third_party_diatomics_kcal_mol"]
    assert np.abs(difference).max() < 0.01


def test_the_symmetry_functions_of_methane():
    potential = ANISection(name="ani").build(ANI2X).double()
    graph = batch_of([Atoms("CH4", METHANE)], reach=potential.reach).graph
    aev = published_aev(potential, graph, ANI2X)
    assert aev.shape == (5, 1008)
    np.testing.assert_allclose(aev.sum(axis=1), METHANE_SUMS, rtol=1e-12)
    expected = np.zeros(1008)
    expected[list(METHANE_CARBON)] = list(METHANE_CARBON.values())
    np.testing.assert_allclose(aev[0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(aev[0, list(METHANE_CARBON)], list(METHANE_CARBON.values()), rtol=1e-10)


@pytest.mark.parametrize(("constants", "elements", "count"), [("ani1x", (1, 6, 7, 8), 326_660), ("ani2x", ANI2X, 1_713_223)])
def test_the_published_numbers_of_parameters(constants: str, elements: tuple[int, ...], count: int):
    potential = ANISection(name="ani", constants=constants).build(elements)
    assert sum(weight.numel() for weight in potential.parameters()) == count


def test_the_published_constants_are_the_defaults(published: Published):
    name = "ani1x" if published.hyper["Zeta"] == 32.0 else "ani2x"
    section = ANISection(name="ani", constants=name)
    same = (
        "cutoff",
        "angular_cutoff",
        "num_radial",
        "radial_eta",
        "first_shift",
        "num_shells",
        "angular_eta",
        "num_angles",
        "zeta",
    )
    assert {key: getattr(section, key) for key in same} == {key: getattr(published.section, key) for key in same}
    assert [section.widths_of(z) for z in published.made.elements] == [
        published.section.widths_of(z) for z in published.made.elements
    ]


def test_some_of_the_elements_can_be_imported(ani2x: Published):
    """Symmetry functions of elements that are not there are zero: the others go on as before."""
    hyper = ani2x.hyper | {"elements": ["H", "C"]}
    made = imported(hyper, {k[2:]: v for k, v in ani2x.weights.items() if k.startswith("w/")})
    assert made.elements == (1, 6)
    some = ANI(made.section, made.elements).double()
    some.load_state_dict(made.state)
    methane = batch_of([Atoms("CH4", METHANE)], reach=some.reach).graph
    torch.testing.assert_close(some(methane).energies, ani2x.potential(methane).energies, rtol=0, atol=1e-12)
