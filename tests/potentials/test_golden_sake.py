"""SAKE gives the numbers of its authors' code where no cutoff acts (float64, energies, atomic energies, forces, positions)."""

import json

import numpy as np
import pytest
import torch
from made_structures import batch_of, cluster
from test_golden import RELATIVE, arrays_of, graph_of, potential_from, read, relative_error
from torch.nn import functional

from modelforge.importing import sake
from modelforge.importing.hyper import read_hyper
from modelforge.importing.sake import NO_CUTOFF
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.sake import SAKE, Surroundings, Velocity, attention


def sake_with_one_layer_more(golden: dict[str, np.ndarray]) -> SAKE:
    """The authors' network; a last layer has random weights."""
    hyper = json.loads(str(golden["hyper"]))
    found = sake.imported(hyper, arrays_of(golden))
    section = found.section.model_copy(update={"num_layers": hyper["depth"] + 1})
    last_move = sake.Kernels(arrays_of(golden), read_hyper(sake.SAKEHyper, hyper)).velocity(hyper["depth"] - 1)
    potential = SAKE(section, found.elements).double()
    missing, unexpected = potential.load_state_dict(found.state | last_move, strict=False)
    assert unexpected == []
    assert missing
    assert all(name.startswith(f"interactions.{hyper['depth']}.") for name in missing)
    return potential


@pytest.mark.parametrize("file", ["sake_random", "sake_random_noupdate"])
def test_sake_gives_the_energies_and_forces_of_its_authors(file, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = potential_from(golden, sake.imported)
    graph = graph_of(golden, NO_CUTOFF)
    prediction = EnergyModel(potential).double().eval()(graph)
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(potential(graph).energies.detach(), golden["atomic_energy"]) < RELATIVE


def test_sake_moves_atoms_where_its_authors_do(shared_data):
    """Seen by a layer more than the authors' network has: their energies do not depend on where the last layer moves atoms."""
    golden = read(shared_data / "golden" / "sake_random.npz")
    potential = sake_with_one_layer_more(golden)
    graph = graph_of(golden, NO_CUTOFF)
    seen: list[Surroundings] = []
    potential.interactions[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    potential(graph)
    positions = torch.as_tensor(golden["output_positions"])
    expected = positions[graph.senders] - positions[graph.receivers]
    assert float((expected - graph.edge_vectors).abs().max()) > 0.1, "nothing moved, so this could not fail"
    assert relative_error(seen[0].vectors.detach(), expected.numpy()) < RELATIVE


def test_attention_is_a_softmax_over_the_neighbours_however_large_the_logits():
    """Exponentials of 300 do not fit into float32; a neighbour at the cutoff takes no part, whatever its logit."""
    graph = batch_of([cluster(5, (1, 6), seed=0)], cutoff=NO_CUTOFF, dtype=torch.float32).graph
    logits = 300.0 * torch.randn(graph.num_edges, 2, generator=torch.Generator().manual_seed(0))
    logits[::4] = 1e4  # the first of four neighbours of each atom
    inside = torch.ones(graph.num_edges, 1)
    inside[::4] = 0.0
    known = torch.where(inside > 0, functional.celu(logits, alpha=2.0), -torch.inf)
    expected = torch.softmax(known.unflatten(0, (5, 4)), dim=1).flatten(0, 1)
    torch.testing.assert_close(attention(logits, inside, graph), expected)


def test_atoms_are_not_moved_in_half_precision():
    velocity = Velocity(num_features=4, num_coefficients=8, is_first=True)
    arguments = torch.randn(3, 4), torch.randn(3, 3, 8), torch.zeros(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = velocity(*arguments)
    assert torch.equal(rounded, velocity(*arguments))
