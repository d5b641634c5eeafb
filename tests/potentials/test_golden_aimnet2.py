"""AIMNet2 gives the numbers of aimnet for three total charges, with and without its Coulomb energy (float64)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_golden import RELATIVE, read, relative_error, structures_of

from modelforge.atoms.graph import AtomicGraph
from modelforge.data.batching.batches import structure_table
from modelforge.errors import UserError
from modelforge.importing.aimnet import imported
from modelforge.importing.imported import ImportedPotential
from modelforge.potentials.coulomb import COULOMB
from modelforge.potentials.energy_model import EnergyModel

CONSTANTS = 1e-8  # relative; aimnet's hartree and bohr are 9e-9 smaller together than those of CODATA 2018
THEIR_COULOMB = 27.211386024367243 * 0.5291772105638411
OF_CHARGE = {0: "", 1: "_charge1", -1: "_charge_minus1"}


def weights_of(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key[2:]: value for key, value in golden.items() if key.startswith("w/")}


@pytest.fixture(scope="module")
def golden(shared_data) -> dict[str, np.ndarray]:
    return read(shared_data / "golden" / "aimnet2_random.npz")


def model_of(golden: dict[str, np.ndarray], *, coulomb: bool = True) -> tuple[EnergyModel, ImportedPotential]:
    hyper, weights = json.loads(str(golden["hyper"])), weights_of(golden)
    if not coulomb:
        hyper["lrcoulomb"] = False
        del weights["outputs.lrcoulomb.rc"]
    found = imported(hyper, weights)
    potential = found.section.build(found.elements).double()
    potential.load_state_dict(found.state)
    return EnergyModel(potential, scale=found.scale).double().eval(), found


def graph_of(golden: dict[str, np.ndarray], model: EnergyModel, *, total_charge: int) -> AtomicGraph:
    structures = structures_of(golden)
    structures = replace(structures, total_charge=np.full(len(structures), float(total_charge)))
    table = structure_table(structures, reach=model.reach, self_energies=np.zeros(120), dtype=torch.float64)
    return table.batch(torch.arange(len(structures))).graph


def shifts(golden: dict[str, np.ndarray], found: ImportedPotential) -> torch.Tensor:
    per_atom = np.array([found.self_energies[z] for z in golden["atomic_numbers"].tolist()])
    return torch.from_numpy(np.add.reduceat(per_atom, np.cumsum(golden["n_atoms"]) - golden["n_atoms"]))


@pytest.mark.parametrize("total_charge", OF_CHARGE)
def test_aimnet2_gives_the_energies_forces_and_charges_of_aimnet(golden, total_charge):
    model, found = model_of(golden)
    prediction = model(graph_of(golden, model, total_charge=total_charge))
    end = OF_CHARGE[total_charge]
    assert relative_error(prediction.partial_charges, golden[f"charges{end}"]) < RELATIVE
    assert relative_error(prediction.energy + shifts(golden, found), golden[f"energy{end}"]) < CONSTANTS
    assert relative_error(prediction.forces, golden[f"forces{end}"]) < CONSTANTS


def test_aimnet2_without_its_coulomb_energy(golden):
    model, found = model_of(golden, coulomb=False)
    prediction = model(graph_of(golden, model, total_charge=0))
    assert relative_error(prediction.partial_charges, golden["charges"]) < RELATIVE
    assert relative_error(prediction.energy + shifts(golden, found), golden["energy_network"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces_network"]) < RELATIVE


def test_the_coulomb_energy_is_that_of_aimnet_but_for_the_constants_of_nature(golden):
    model, _ = model_of(golden)
    network, _ = model_of(golden, coulomb=False)
    graph = graph_of(golden, model, total_charge=0)
    of_coulomb = (model(graph).energy - network(graph).energy).numpy() * (THEIR_COULOMB / COULOMB)
    theirs = golden["energy"] - golden["energy_network"]
    assert abs(theirs).max() > 1e-3, "no Coulomb energy, so this could not fail"
    assert np.abs(of_coulomb - theirs).max() < RELATIVE * np.abs(golden["energy"]).max()


def test_elements_that_aimnet_was_not_trained_on_are_left_out(golden):
    """Released files have NaN in their rows."""
    weights = weights_of(golden)
    weights["afv.weight"] = weights["afv.weight"].copy()
    weights["afv.weight"][10:] = np.nan
    found = imported(json.loads(str(golden["hyper"])), weights)
    assert found.elements == tuple(range(1, 10))
    assert found.state["embedding.weight"].isfinite().all()
    with pytest.raises(UserError, match="has no Na"):
        imported({**json.loads(str(golden["hyper"])), "elements": ["H", "Na"]}, weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aev.shifts_v", r"aev\.shifts_v: must be equal to aev\.shifts_s"),
        ("aev.rc_v", r"aev\.rc_v: must be equal to aev\.rc_s"),
        ("outputs.lrcoulomb.rc", r"coulomb_rc: must be 5\.6, as w/outputs\.lrcoulomb\.rc says \(got 4\.6\)"),
    ],
)
def test_an_aimnet2_that_cannot_be_imported_is_refused(golden, name, message):
    weights = weights_of(golden)
    weights[name] = weights[name] + 1.0
    with pytest.raises(UserError, match=message):
        imported(json.loads(str(golden["hyper"])), weights)


def test_a_coulomb_energy_in_ev_goes_with_a_network_in_ev(golden):
    with pytest.raises(UserError, match="energy_unit: must be eV with lrcoulomb"):
        imported({**json.loads(str(golden["hyper"])), "energy_unit": "hartree"}, weights_of(golden))
