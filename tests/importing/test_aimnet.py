"""AIMNet2 networks of other sizes than the golden file's, against its equations written out over all pairs. About 0.2 s.

N atoms, A features, K radial functions, H vectors, x the three axes.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster
from torch import Tensor
from torch.nn.functional import gelu

from modelforge.errors import UserError
from modelforge.importing.aimnet import imported
from modelforge.potentials.energy_model import EnergyModel

RELATIVE = 1e-10  # of the largest value
TOTAL_CHARGE = -1.0
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "two passes": {
        "nfeature": 4,
        "nshifts": 4,
        "ncomb_v": 4,
        "cutoff": 3.3,
        "rmin": 0.5,
        "hidden": [[5], [7, 6]],
        "aim_size": 3,
        "output_hidden": [4],
    },
    "four passes": {
        "nfeature": 3,
        "nshifts": 5,
        "ncomb_v": 7,
        "cutoff": 4.1,
        "rmin": 1.0,
        "hidden": [[5, 4], [6], [7, 8, 9], [4]],
        "aim_size": 11,
        "output_hidden": [6, 5, 4],
    },
}


def random_weights(hyper: dict[str, Any]) -> dict[str, np.ndarray]:
    """All arrays that a network has, by their names in aimnet."""
    random = np.random.default_rng(0)
    num_features, num_radial, num_vectors = hyper["nfeature"], hyper["nshifts"], hyper["ncomb_v"]
    all_features = num_features * num_radial
    arrays = {
        "afv.weight": random.normal(size=(12, all_features)),
        "outputs.atomic_shift.shifts.weight": np.zeros((12, 1)),
        "conv_a.agh": random.normal(size=(num_features, num_radial, num_vectors)),
        "conv_q.agh": random.normal(size=(1, num_radial, num_vectors)),
    }
    for kind in ("s", "v"):
        arrays[f"aev.rc_{kind}"] = np.array(hyper["cutoff"])
        arrays[f"aev.eta_{kind}"] = np.array((num_radial / (hyper["cutoff"] - hyper["rmin"])) ** 2)
        arrays[f"aev.shifts_{kind}"] = np.linspace(hyper["rmin"], hyper["cutoff"], num_radial + 1)[:-1]
    num_seen = 2 * all_features + num_features * num_vectors
    networks = {"outputs.energy_mlp.mlp": [hyper["aim_size"], *hyper["output_hidden"], 1]}
    for t, hidden in enumerate(hyper["hidden"]):
        num_in = num_seen if t == 0 else num_seen + 1 + num_radial + num_vectors
        num_out = hyper["aim_size"] if t == len(hyper["hidden"]) - 1 else 2 + all_features
        networks[f"mlps.{t}"] = [num_in, *hidden, num_out]
    for name, widths in networks.items():
        for layer, (num_in, num_out) in enumerate(pairwise(widths)):
            arrays[f"{name}.{2 * layer}.weight"] = random.normal(size=(num_out, num_in)) / math.sqrt(num_in)
            arrays[f"{name}.{2 * layer}.bias"] = 0.3 * random.normal(size=num_out)
    return arrays


def written_out(hyper: dict[str, Any], weights: dict[str, Tensor], atoms: Atoms, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and charges (N,) by the equations of the package."""
    vectors = positions[None] - positions[:, None]  # (N, N, 3) from the first to the second
    is_self = torch.eye(len(atoms), dtype=torch.float64)
    distance = (vectors.square().sum(dim=2) + is_self).sqrt()
    envelope = 0.5 * (torch.cos(math.pi * distance.clamp(max=hyper["cutoff"]) / hyper["cutoff"]) + 1.0) * (1.0 - is_self)
    gaussians = torch.exp(-weights["aev.eta_s"] * (distance[:, :, None] - weights["aev.shifts_s"]) ** 2) * envelope[:, :, None]

    def network(name: str, x: Tensor) -> Tensor:
        layers = [key for key in weights if key.startswith(name) and key.endswith("weight")]
        for place, key in enumerate(layers):
            x = (gelu(x) if place else x) @ weights[key].T + weights[key.replace("weight", "bias")]
        return x

    def seen(x: Tensor, mixing: Tensor) -> Tensor:
        scalars = torch.einsum("jak,ijk->iak", x, gaussians)
        sums = torch.einsum("jak,ijk,ijx->iakx", x, gaussians, vectors / distance[:, :, None])
        lengths = torch.einsum("akh,iakx->iahx", mixing, sums).square().sum(dim=3)
        return torch.cat([scalars.flatten(1), lengths.flatten(1)], dim=1)

    features, charges = weights["afv.weight"][atoms.numbers], torch.zeros(len(atoms), 1, dtype=torch.float64)
    last = len(hyper["hidden"]) - 1
    for t in range(last + 1):
        by_shell = torch.unflatten(features, 1, (hyper["nfeature"], hyper["nshifts"]))
        inputs = [features, seen(by_shell, weights["conv_a.agh"])]
        if t:
            inputs += [charges, seen(charges[:, :, None].expand(-1, -1, hyper["nshifts"]), weights["conv_q.agh"])]
        changes = network(f"mlps.{t}.", torch.cat(inputs, dim=1))
        changes = gelu(changes) if t else changes
        if t < last:
            proposed, share = charges + changes[:, :1], changes[:, 1:2].square()
            charges = proposed + share / (share.sum() + 1e-6) * (TOTAL_CHARGE - proposed.sum())
            features = features + changes[:, 2:]
    return network("outputs.energy_mlp.mlp.", changes).sum(), charges[:, 0]


@pytest.mark.parametrize("sizes", OTHER_SIZES.values(), ids=OTHER_SIZES)
def test_networks_of_other_sizes_follow_the_equations(sizes: dict[str, Any]) -> None:
    hyper = {**sizes, "lrcoulomb": False}
    arrays = random_weights(hyper)
    found = imported(hyper, arrays)
    potential = found.section.build(found.elements).double()
    potential.load_state_dict(found.state)
    model = EnergyModel(potential).double().eval()
    atoms = cluster(7, (1, 6, 8), seed=2)
    atoms.info["total_charge"] = TOTAL_CHARGE
    prediction = model(batch_of([atoms], reach=model.reach).graph)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    energy, charges = written_out(hyper, weights, atoms, positions)
    (gradient,) = torch.autograd.grad(energy, positions)
    torch.testing.assert_close(prediction.energy[0], energy, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(prediction.partial_charges, charges, rtol=0, atol=RELATIVE * float(charges.detach().abs().max()))
    torch.testing.assert_close(prediction.forces, -gradient, rtol=0, atol=RELATIVE * float(gradient.abs().max()))


def test_tables_that_do_not_go_together_are_told() -> None:
    hyper = {**OTHER_SIZES["two passes"], "lrcoulomb": False}
    arrays = random_weights(hyper) | {"outputs.atomic_shift.shifts.weight": np.zeros((5, 1))}
    with pytest.raises(
        UserError, match=r"w/outputs\.atomic_shift\.shifts\.weight: must have the shape \(12, 1\) \(has \(5, 1\)\)"
    ):
        imported(hyper, arrays)


def test_rows_beyond_the_elements_that_have_a_symbol_are_left_out() -> None:
    hyper = {**OTHER_SIZES["two passes"], "lrcoulomb": False}
    arrays = random_weights(hyper) | {
        "afv.weight": np.ones((130, 16)),
        "outputs.atomic_shift.shifts.weight": np.zeros((130, 1)),
    }
    assert imported(hyper, arrays).elements == tuple(range(1, 119))
