"""SchNet and PaiNN of SchNetPack 2 (`NeuralNetworkPotential`: a representation and an `Atomwise` head).

The radial functions are those of the file to the last digit, also where they were trained, and so is the cutoff: the network
was trained with their roundings. Layers that blocks share become layers of each block, with the same numbers.
F features, C filters, K radial functions, T blocks.
"""

import re
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.hyper import NUM_SYMBOLS, PLACE, PeerHyper, read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.weights import PREFIX, Weights
from modelforge.nn.radial import RadialBasisName
from modelforge.potentials.painn import NORM_EPSILON, PaiNNSection
from modelforge.potentials.schnet import SchNetSection
from modelforge.section import Count, Positive

State = dict[str, Tensor]

HEAD = "output_modules.0.outnet"
FILTERS = "representation.filter_net"  # PaiNN alone has it
POSTPROCESSOR = re.compile(r"postprocessors\.\d+\.mean")
ROUNDING = 1e-6  # relative; of a cutoff in single precision


class AtomisticHyper(PeerHyper):
    """What SchNet and PaiNN have in common; options with one choice are those that can be imported."""

    n_atom_basis: Count
    n_interactions: Count
    n_rbf: Count
    cutoff: Positive
    radial_basis: RadialBasisName = "gaussian"
    cutoff_fn: Literal["cosine"] = "cosine"
    shared_interactions: bool = False
    max_z: Count = 100
    head_layers: Literal[2] = 2
    head_activation: Literal["silu"] = "silu"
    aggregation_mode: Literal["sum"] = "sum"


class PaiNNHyper(AtomisticHyper):
    """`schnetpack.representation.PaiNN`."""

    model: Literal["painn"] = "painn"
    activation: Literal["silu"] = "silu"
    shared_filters: bool = False
    epsilon: Positive = NORM_EPSILON

    @field_validator("epsilon")
    @classmethod
    def is_ours(cls, epsilon: float) -> float:
        """It is no option here."""
        if epsilon != NORM_EPSILON:
            raise ValueError(f"must be {NORM_EPSILON:g} (got {epsilon:g}); a network with another one cannot be imported")
        return epsilon


class SchNetHyper(AtomisticHyper):
    """`schnetpack.representation.SchNet`."""

    model: Literal["schnet"] = "schnet"
    activation: Literal["shifted_softplus"] = "shifted_softplus"
    n_filters: Count | None = None


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes; one that does not say `model` is told by its weights."""
    arrays = Weights(weights)
    model = hyper.get("model", "painn" if f"{FILTERS}.weight" in arrays else "schnet")
    if model == "painn":
        return _painn(read_hyper(PaiNNHyper, hyper), arrays)
    if model == "schnet":
        return _schnet(read_hyper(SchNetHyper, hyper), arrays)
    raise UserError(f"{PLACE}.model: unknown choice {model!r} (choices: painn, schnet)")


def _painn(hyper: PaiNNHyper, weights: Weights) -> ImportedPotential:
    features = hyper.n_atom_basis
    num_filters = 3 * features * (1 if hyper.shared_filters else hyper.n_interactions)
    state = _first_layer(hyper, weights, FILTERS, "filters", num_filters)
    for t in range(hyper.n_interactions):
        context, mixing = f"representation.interactions.{t}.interatomic_context_net", f"representation.mixing.{t}"
        state |= _two_layers(weights, context, f"messages.{t}.context", features, features, 3 * features)
        state |= weights.take_layer(
            f"{mixing}.mu_channel_mix", f"mixings.{t}.vector_channels", features, 2 * features, bias=False
        )
        own = f"{mixing}.intraatomic_context_net"
        state |= _two_layers(weights, own, f"mixings.{t}.context", 2 * features, features, 3 * features)
    section = PaiNNSection(
        name="painn",
        cutoff=_cutoff(hyper, weights),
        num_features=features,
        num_layers=hyper.n_interactions,
        num_radial=hyper.n_rbf,
        radial_basis=hyper.radial_basis,
        shared_filters=hyper.shared_filters,
    )
    return _completed(section, state, hyper, weights)


def _schnet(hyper: SchNetHyper, weights: Weights) -> ImportedPotential:
    features, filters = hyper.n_atom_basis, hyper.n_filters or hyper.n_atom_basis
    state: State = {}
    for t in range(hyper.n_interactions):
        theirs, ours = f"representation.interactions.{t}", f"interactions.{t}"
        state |= _first_layer(hyper, weights, f"{theirs}.filter_network.0", f"{ours}.filter_network.0", filters)
        state |= weights.take_layer(f"{theirs}.filter_network.1", f"{ours}.filter_network.2", filters, filters)
        state |= weights.take_layer(f"{theirs}.in2f", f"{ours}.features_in", features, filters, bias=False)
        state |= _two_layers(weights, f"{theirs}.f2out", f"{ours}.features_out", filters, features, features)
    section = SchNetSection(
        name="schnet",
        cutoff=_cutoff(hyper, weights),
        num_features=features,
        num_filters=hyper.n_filters,
        num_layers=hyper.n_interactions,
        num_radial=hyper.n_rbf,
        radial_basis=hyper.radial_basis,
    )
    return _completed(section, state, hyper, weights)


def _completed(
    section: PaiNNSection | SchNetSection, state: State, hyper: AtomisticHyper, weights: Weights
) -> ImportedPotential:
    """With what both have: elements, radial functions, head, and what is added to the network's energies."""
    features = hyper.n_atom_basis
    elements = hyper.elements_among(range(1, min(hyper.max_z, NUM_SYMBOLS)))  # row 0 pads
    table = weights.take("representation.embedding.weight", hyper.max_z, features)
    state |= {"embedding.weight": table[list(elements)], **_radial_constants(hyper, weights)}
    state |= _two_layers(weights, HEAD, "readout", features, max(features // 2, 1), 1)
    offsets = _offsets(weights, elements)
    weights.refuse_rest(f"{section.name} with an Atomwise head")
    if any(offsets.values()) and (hyper.mean_per_atom or hyper.self_energies):
        raise UserError(
            f"{PLACE}: must not give mean_per_atom or self_energies beside the weights of postprocessors, which add energies "
            "of atoms already; leave one of them out"
        )
    constants = hyper.constants(elements)
    return ImportedPotential(
        section,
        elements,
        state,
        {z: constants[z] + hyper.energy * offsets[z] for z in elements},
        hyper.energy,
        hyper.notes(elements),
    )


def _two_layers(weights: Weights, theirs: str, ours: str, num_in: int, num_hidden: int, num_out: int) -> State:
    first = weights.take_layer(f"{theirs}.0", f"{ours}.0", num_in, num_hidden)
    return first | weights.take_layer(f"{theirs}.1", f"{ours}.2", num_hidden, num_out)


def _first_layer(hyper: AtomisticHyper, weights: Weights, theirs: str, ours: str, num_out: int) -> State:
    """The layer that sees the radial functions: those with 1/d are smaller where d is in a smaller unit."""
    layer = weights.take_layer(theirs, ours, hyper.n_rbf, num_out)
    if hyper.radial_basis == "bessel":
        layer[f"{ours}.weight"] = layer[f"{ours}.weight"] * hyper.length
    return layer


def _radial_constants(hyper: AtomisticHyper, weights: Weights) -> State:
    basis = "representation.radial_basis"
    if hyper.radial_basis == "bessel":
        return {"radial_basis.frequencies": weights.take(f"{basis}.freqs", hyper.n_rbf) / hyper.length}
    return {
        "radial_basis.centres": weights.take(f"{basis}.offsets", hyper.n_rbf) * hyper.length,
        "radial_basis.widths": weights.take(f"{basis}.widths", hyper.n_rbf) * hyper.length,
    }


def _cutoff(hyper: AtomisticHyper, weights: Weights) -> float:
    """The cutoff of the file in angstrom."""
    name = "representation.cutoff_fn.cutoff"
    stored = float(weights.take(name, 1))
    if abs(stored - hyper.cutoff) > ROUNDING * hyper.cutoff:
        raise UserError(f"{PLACE}.cutoff: must be that of {PREFIX}{name}, {stored:g} (got {hyper.cutoff:g}); correct it")
    return stored * hyper.length


def _offsets(weights: Weights, elements: tuple[int, ...]) -> dict[int, float]:
    """What `AddOffsets` adds for each atom, in the unit of the network; another step could be for another quantity."""
    steps = [name for name in weights.names if POSTPROCESSOR.fullmatch(name)]
    if len(steps) > 1:
        raise UserError(
            f"{PREFIX}{steps[1]}: must be the only AddOffsets (there is {PREFIX}{steps[0]} before it), as names do not tell "
            "which of them is for the energy; leave the weights of the others out of the file"
        )
    if not steps:
        return dict.fromkeys(elements, 0.0)
    mean, name = _number(weights, steps[0]), f"{steps[0].removesuffix('.mean')}.atomref"
    table = weights.take_any(name).ravel()
    if missing := [z for z in elements if z >= len(table)]:
        raise UserError(
            f"{PREFIX}{name}: must have a row for each element (ends before atomic number {missing[0]}); name the elements "
            "with --elements"
        )
    return {z: mean + float(table[z]) for z in elements}


def _number(weights: Weights, name: str) -> float:
    array: Any = weights.take_any(name)
    if array.size != 1:
        raise UserError(f"{PREFIX}{name}: must be one number (has the shape {array.shape}); import a network of energies")
    return float(torch.from_numpy(array.ravel())[0])
