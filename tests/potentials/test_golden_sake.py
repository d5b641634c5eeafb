"""SAKE gives the numbers of its authors' code where no cutoff acts (float64, energies, atomic energies, forces, positions)."""

import json

import numpy as np
import pytest
import torch
from made_structures import batch_of, cluster
from test_golden import RELATIVE, graph_of, read, relative_error, weights_of
from torch import Tensor
from torch.nn import functional

from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.sake import SAKE, SAKESection, Surroundings, Velocity, attention

NO_CUTOFF = 1e8  # angstrom; the envelope is then 1 to the last digit

Weights = dict[str, Tensor]


def layer(theirs: Weights, old: str, new: str) -> Weights:
    """A dense layer: the authors' kernels are (in, out)."""
    named = {f"{new}.weight": theirs[f"{old}.kernel"].T}
    return named | ({f"{new}.bias": theirs[f"{old}.bias"]} if f"{old}.bias" in theirs else {})


def layers(theirs: Weights, old: str, new: str) -> Weights:
    return layer(theirs, f"{old}.layers_0", f"{new}.0") | layer(theirs, f"{old}.layers_2", f"{new}.2")


def edge_features(theirs: Weights, old: str, new: str, *, num_features: int) -> Weights:
    """The authors' layers on [h_j, h_i, ...], divided into what acts on each."""
    gate, hidden = theirs[f"{old}.mlp_in.kernel"].T, theirs[f"{old}.mlp_out.layers_0.kernel"].T
    of_atoms = torch.cat([gate, hidden[:, : 2 * num_features]])  # (K + F, 2F)
    return {
        f"{new}.of_sender.weight": of_atoms[:, :num_features],
        f"{new}.of_sender.bias": torch.cat([theirs[f"{old}.mlp_in.bias"], theirs[f"{old}.mlp_out.layers_0.bias"]]),
        f"{new}.of_receiver.weight": of_atoms[:, num_features:],
        f"{new}.of_distance.weight": hidden[:, 2 * num_features :],
        f"{new}.radial_basis.centres": theirs[f"{old}.kernel.means"],
        f"{new}.radial_basis.steepness": theirs[f"{old}.kernel.betas"],
        **layer(theirs, f"{old}.mlp_out.layers_2", f"{new}.output"),
    }


def by_heads(weight: Tensor, *, num_features: int) -> Tensor:
    """Columns (out, F H) feature by feature as (out, H F), head by head."""
    return weight.unflatten(1, (num_features, -1)).transpose(1, 2).flatten(1)


def sake_weights(theirs: Weights, *, num_features: int, num_layers: int, num_velocities: int) -> Weights:
    """The authors' weights by our names; `log_gamma` does nothing in their code, nor do the velocities of the last layer."""
    state = {"embedding.weight": theirs["embedding_in.kernel"] + theirs["embedding_in.bias"]}
    for t in range(num_layers):
        old, new = f"d{t}", f"interactions.{t}"
        state |= edge_features(theirs, f"{old}.edge_model", f"{new}.edge_features", num_features=num_features)
        state |= layer(theirs, f"{old}.semantic_attention_mlp.layers_0", f"{new}.logits")
        state |= layers(theirs, f"{old}.post_norm_mlp", f"{new}.of_norms") | layers(theirs, f"{old}.node_mlp", f"{new}.update")
        state[f"{new}.mixing.weight"] = by_heads(theirs[f"{old}.x_mixing.layers_0.kernel"].T, num_features=num_features)
        of_atom, of_messages, of_norms = state[f"{new}.update.0.weight"].tensor_split((num_features, -num_features), dim=1)
        of_messages = by_heads(of_messages, num_features=num_features)
        state[f"{new}.update.0.weight"] = torch.cat([of_atom, of_messages, of_norms], dim=1)
    for t in range(num_velocities):
        state |= layer(theirs, f"d{t}.v_mixing", f"velocities.{t}.mixing")
        state |= layers(theirs, f"d{t}.velocity_mlp", f"velocities.{t}.gate") if t else {}
    return state | layers(theirs, "embedding_out", "readout")


def theirs(golden: dict[str, np.ndarray]) -> Weights:
    return {name.removeprefix("params/").replace("/", "."): weight for name, weight in weights_of(golden).items()}


def sake_from(golden: dict[str, np.ndarray], *, more_layers: int = 0) -> SAKE:
    """The authors' network; layers more than theirs have random weights."""
    hyper = json.loads(str(golden["hyper"]))
    section = SAKESection(
        name="sake",
        cutoff=NO_CUTOFF,
        num_features=hyper["hidden_features"],
        num_layers=hyper["depth"] + more_layers,
        num_heads=hyper["n_heads"],
        radial_range=5.0,
        update_positions=hyper["update"],
    )
    potential = SAKE(section, hyper["species"]).double()
    state = sake_weights(
        theirs(golden),
        num_features=section.num_features,
        num_layers=hyper["depth"],
        num_velocities=len(potential.velocities),
    )
    missing, unexpected = potential.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.startswith(f"interactions.{hyper['depth']}.") for name in missing)
    assert bool(missing) == bool(more_layers)
    return potential


@pytest.mark.parametrize("file", ["sake_random", "sake_random_noupdate"])
def test_sake_gives_the_energies_and_forces_of_its_authors(file, shared_data):
    golden = read(shared_data / "golden" / f"{file}.npz")
    potential = sake_from(golden)
    graph = graph_of(golden, NO_CUTOFF)
    prediction = EnergyModel(potential).double().eval()(graph)
    assert relative_error(prediction.energy, golden["energy"]) < RELATIVE
    assert relative_error(prediction.forces, golden["forces"]) < RELATIVE
    assert relative_error(potential(graph).energies.detach(), golden["atomic_energy"]) < RELATIVE


def test_sake_moves_atoms_where_its_authors_do(shared_data):
    """Seen by a layer more than the authors' network has: their energies do not depend on where the last layer moves atoms."""
    golden = read(shared_data / "golden" / "sake_random.npz")
    potential = sake_from(golden, more_layers=1)
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
