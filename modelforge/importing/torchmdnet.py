"""TensorNet of TorchMD-Net 2 and 3 (model "tensornet", output "Scalar"), with the total charge in its products.

The radial functions are those of the file to the last digit, where it has them, and exact ones where it has not. An `Atomref`
prior gives the self-energies. F features, K radial functions, T layers.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.hyper import NUM_SYMBOLS, PLACE, PeerHyper, read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.weights import PREFIX, Weights
from modelforge.potentials.tensornet import TensorNetSection
from modelforge.section import Count, Positive

State = dict[str, Tensor]

MODEL = "representation_model"
EMBEDDING = f"{MODEL}.tensor_embedding"
RADIAL = f"{MODEL}.distance_expansion"
BOX = f"{MODEL}.distance.box"
HEAD = "output_model.output_network.layers"
ATOMREF = "prior_model.0"
ROUNDING = 0.01  # of a cutoff that is known by exp(-cutoff) in single precision
ACTIVATIONS: dict[str, Literal["silu", "tanh", "shifted_softplus"]] = {
    "silu": "silu",
    "tanh": "tanh",
    "ssp": "shifted_softplus",
}


class TensorNetHyper(PeerHyper):
    """Options of a TensorNet; those with one choice can only be imported with that."""

    model: Literal["tensornet"] = "tensornet"
    hidden_channels: Count
    num_layers: Count
    num_rbf: Count
    cutoff: Positive
    cutoff_lower: Annotated[float, Field(ge=0, le=0)] = 0.0
    rbf_type: Literal["expnorm"] = "expnorm"
    activation: Literal["silu", "tanh", "ssp"] = "silu"
    group: Literal["O(3)"] = "O(3)"
    max_z: Count = 128
    output_model: Literal["Scalar"] = "Scalar"
    reduce_op: Literal["add", "sum"] = "add"


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options, arrays = read_hyper(TensorNetHyper, hyper), Weights(weights)
    features = options.hidden_channels
    elements = options.elements_among(range(1, min(options.max_z, NUM_SYMBOLS)))  # row 0 is of no element
    state = _embedding(options, arrays, elements) | _radial_constants(options, arrays)
    for t in range(options.num_layers):
        state |= _interaction(options, arrays, t)
    state |= _norm(arrays, f"{MODEL}.out_norm", "readout.0", 3 * features)
    state |= arrays.take_layer(f"{MODEL}.linear", "readout.1", 3 * features, features)
    state |= arrays.take_layer(f"{HEAD}.0", "readout.3", features, max(features // 2, 1))
    state |= arrays.take_layer(f"{HEAD}.2", "readout.5", max(features // 2, 1), 1)
    scale, atomrefs = _standardisation(arrays), _atomrefs(options, arrays, elements)
    box_notes = _box(arrays)
    arrays.refuse_rest("a TensorNet with a Scalar output")
    constants = options.constants(elements)
    section = TensorNetSection(
        name="tensornet",
        cutoff=options.cutoff * options.length,
        num_features=features,
        num_layers=options.num_layers,
        num_radial=options.num_rbf,
        activation=ACTIVATIONS[options.activation],
        charge_in_products=True,
    )
    return ImportedPotential(
        section,
        elements,
        state,
        {z: constants[z] + options.energy * atomrefs[z] for z in elements},
        options.energy * scale,
        (*options.notes(elements), *box_notes),
    )


def _embedding(options: TensorNetHyper, weights: Weights, elements: tuple[int, ...]) -> State:
    features = options.hidden_channels
    pairs = weights.take_layer(f"{EMBEDDING}.emb2", "pairs", 2 * features, features)
    receivers, senders = pairs["pairs.weight"].chunk(2, dim=1)  # a layer for each atom in the place of one for both
    projections = [weights.take_layer(f"{EMBEDDING}.distance_proj{n}", "part", options.num_rbf, features) for n in (1, 2, 3)]
    state = {
        "embedding.elements.weight": weights.take(f"{EMBEDDING}.emb.weight", options.max_z, features)[list(elements)],
        "embedding.receivers.weight": receivers,
        "embedding.receivers.bias": pairs["pairs.bias"],
        "embedding.senders.weight": senders,
        "embedding.filters.weight": torch.cat([part["part.weight"] for part in projections]),
        "embedding.filters.bias": torch.cat([part["part.bias"] for part in projections]),
    }
    state |= _norm(weights, f"{EMBEDDING}.init_norm", "embedding.norm", features)
    state |= weights.take_layer(f"{EMBEDDING}.linears_scalar.0", "embedding.scales.0", features, 2 * features)
    state |= weights.take_layer(f"{EMBEDDING}.linears_scalar.1", "embedding.scales.2", 2 * features, 3 * features)
    for n in range(3):
        theirs, ours = f"{EMBEDDING}.linears_tensor.{n}", f"embedding.mixing.layers.{n}"
        state |= weights.take_layer(theirs, ours, features, features, bias=False)
    return state


def _interaction(options: TensorNetHyper, weights: Weights, t: int) -> State:
    theirs, ours, features = f"{MODEL}.layers.{t}", f"interactions.{t}", options.hidden_channels
    widths = (options.num_rbf, features, 2 * features, 3 * features)
    state: State = {}
    for n in range(3):
        state |= weights.take_layer(f"{theirs}.linears_scalar.{n}", f"{ours}.filters.{2 * n}", widths[n], widths[n + 1])
        for mixing, place in (("before", n), ("after", n + 3)):
            layer = f"{ours}.mixing_{mixing}.layers.{n}"
            state |= weights.take_layer(f"{theirs}.linears_tensor.{place}", layer, features, features, bias=False)
    return state


def _norm(weights: Weights, theirs: str, ours: str, num: int) -> State:
    return {f"{ours}.{kind}": weights.take(f"{theirs}.{kind}", num) for kind in ("weight", "bias")}


def _radial_constants(options: TensorNetHyper, weights: Weights) -> State:
    """Those of the file or exact ones; a unit of length is in the rate alone, which is 5 over the cutoff."""
    if f"{RADIAL}.means" in weights:
        means = weights.take(f"{RADIAL}.means", options.num_rbf)
        _refuse_other_cutoff(options, means)
        return {
            "radial_basis.centres": means,
            "radial_basis.steepness": weights.take(f"{RADIAL}.betas", options.num_rbf),
        }
    lowest = math.exp(-options.cutoff)
    centres = torch.linspace(lowest, 1.0, options.num_rbf, dtype=torch.float64)
    steepness = torch.full_like(centres, (2.0 / options.num_rbf * (1.0 - lowest)) ** -2)
    return {"radial_basis.centres": centres, "radial_basis.steepness": steepness}


def _refuse_other_cutoff(options: TensorNetHyper, means: Tensor) -> None:
    """Means that were not trained are in equal steps from exp(-cutoff) to 1: the only trace of the cutoff among the weights."""
    first = float(means[0])
    were_trained = first <= 0 or not torch.allclose(means, torch.linspace(first, 1.0, len(means), dtype=means.dtype), atol=1e-5)
    if len(means) == 1 or were_trained:
        return
    if abs((cutoff := -math.log(first)) - options.cutoff) > ROUNDING:
        place = f"{PREFIX}{RADIAL}.means"
        raise UserError(f"{PLACE}.cutoff: must be {cutoff:.4g}, as {place} says (got {options.cutoff:g}); correct it")


def _box(weights: Weights) -> tuple[str, ...]:
    """The box of the neighbour list, zeros where there is none: it belongs to structures, not to the network."""
    if BOX not in weights or not weights.take(BOX, 3, 3).any():
        return ()
    return ("its box is not taken over: structures bring their own cells",)


def _standardisation(weights: Weights) -> float:
    """The factor of atomic energies."""
    if "mean" in weights and (mean := float(weights.take("mean"))):
        raise UserError(
            f"{PREFIX}mean: must be 0 (is {mean:g}): it is added once to each structure, whatever its size, which potentials "
            "here do not do; train with an Atomref prior instead of standardize"
        )
    return float(weights.take("std")) if "std" in weights else 1.0


def _atomrefs(options: TensorNetHyper, weights: Weights, elements: tuple[int, ...]) -> dict[int, float]:
    """What an `Atomref` prior adds for each atom; what it started from (`initial_atomref`) has no effect."""
    if f"{ATOMREF}.atomref.weight" not in weights:
        return dict.fromkeys(elements, 0.0)
    if options.mean_per_atom or options.self_energies:
        raise UserError(
            f"{PLACE}: must not give mean_per_atom or self_energies beside the weights of {ATOMREF}, which adds energies of "
            "atoms already; leave one of them out"
        )
    if f"{ATOMREF}.initial_atomref" in weights:
        weights.take_any(f"{ATOMREF}.initial_atomref")
    table = weights.take_any(f"{ATOMREF}.atomref.weight").ravel()
    if missing := [z for z in elements if z >= len(table)]:
        raise UserError(
            f"{PREFIX}{ATOMREF}.atomref.weight: must have a row for each element (ends before atomic number {missing[0]}); "
            "name the elements with --elements"
        )
    return {z: float(table[z]) for z in elements}
