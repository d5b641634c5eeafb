"""MACE of the package mace-torch (0.3): a `state_dict` of `ScaleShiftMACE` or `MACE` with one head.

Matrices of irreps stand one after the other in flat arrays; radial weights come in the order of its paths, which this package
has in another. Coupling coefficients: see `mace_couplings.py`. S elements, C channels, P paths or basis functions.
"""

import math
import re
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.e3nn_arrays import CLOSE, irrep_matrices, path_weights
from modelforge.importing.hyper import NUM_SYMBOLS, PeerHyper, read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.mace_couplings import change_of_basis
from modelforge.importing.weights import PREFIX, Weights
from modelforge.nn.equivariant.irreps import natural_irreps
from modelforge.nn.equivariant.symmetric_contraction import weight_name
from modelforge.nn.equivariant.unit_variance import ElementLinear
from modelforge.potentials.mace import MACE, Layer, MACESection
from modelforge.section import Count, Positive, SectionError

State = dict[str, Tensor]
Block = Literal["RealAgnosticResidualInteractionBlock", "RealAgnosticInteractionBlock"]


class MACEHyper(PeerHyper):
    """Options of a MACE; those with one choice can only be imported with that."""

    r_max: Positive
    atomic_numbers: Annotated[tuple[Annotated[int, Field(gt=0, lt=NUM_SYMBOLS)], ...], Field(min_length=1)]
    avg_num_neighbors: Positive
    hidden_irreps: str
    max_ell: Annotated[int, Field(ge=0, le=6)]
    correlation: Literal[1, 2, 3]
    num_interactions: Annotated[int, Field(ge=2)]  # of one alone the readout is another
    num_bessel: Count
    num_polynomial_cutoff: Count
    radial_MLP: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 64, 64)
    MLP_irreps: str = "16x0e"
    interaction_first: Block = "RealAgnosticResidualInteractionBlock"
    interaction: Literal["RealAgnosticResidualInteractionBlock"] = "RealAgnosticResidualInteractionBlock"
    radial_type: Literal["bessel"] = "bessel"
    gate: Literal["silu"] = "silu"
    distance_transform: Literal["None"] = "None"
    apply_cutoff: Literal[True] = True
    pair_repulsion: Literal[False] = False
    atomic_energies: tuple[float, ...] | None = None
    atomic_inter_scale: float = 1.0
    atomic_inter_shift: float = 0.0

    @model_validator(mode="after")
    def _irreps_are_those_of_one_width(self) -> "MACEHyper":
        if not re.fullmatch(r"[1-9]\d*x0e", self.MLP_irreps):
            raise SectionError(("MLP_irreps", f"must be scalars, such as 16x0e (got {self.MLP_irreps!r})"))
        channels = self.hidden_irreps.partition("x")[0]
        widths = [f"{channels}x{irrep}" for irrep in natural_irreps(self.max_ell)]
        usual = ["+".join(widths[: place + 1]) for place in range(len(widths))]
        if not re.fullmatch(r"[1-9]\d*", channels) or self.hidden_irreps.replace(" ", "") not in usual:
            raise SectionError(
                (
                    "hidden_irreps",
                    f"must be as many channels of 0e, 1o, 2e .., such as 64x0e+64x1o (got {self.hidden_irreps!r})",
                )
            )
        if self.atomic_energies is not None and len(self.atomic_energies) != len(self.atomic_numbers):
            raise SectionError(("atomic_energies", "must have one energy for each of atomic_numbers"))
        return self

    @property
    def num_channels(self) -> int:
        """C."""
        return int(self.hidden_irreps.partition("x")[0])

    def section(self) -> MACESection:
        """What describes the network here."""
        return MACESection(
            name="mace",
            cutoff=self.r_max * self.length,
            max_ell=self.max_ell,
            l_max=self.hidden_irreps.count("+"),
            num_channels=self.num_channels,
            num_layers=self.num_interactions,
            correlation=self.correlation,
            num_bessel=self.num_bessel,
            cutoff_power=self.num_polynomial_cutoff,
            radial_hidden=self.radial_MLP,
            readout_hidden=int(self.MLP_irreps.partition("x")[0]),
            first_interaction="plain" if self.interaction_first == "RealAgnosticInteractionBlock" else "residual",
            avg_num_neighbors=self.avg_num_neighbors,
        )


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options = read_hyper(MACEHyper, hyper)
    arrays = Weights(_without_constants(options, weights))
    elements = options.elements_among(options.atomic_numbers)
    rows = [options.atomic_numbers.index(element) for element in elements]
    section = options.section()
    network = section.build(elements)
    num_elements, num_channels = len(options.atomic_numbers), options.num_channels
    embedding = arrays.take("node_embedding.linear.weight", num_elements * num_channels).view(num_elements, -1)
    frequencies = arrays.take("radial_embedding.bessel_fn.bessel_weights", options.num_bessel)
    state: State = {
        "embedding.weight": _of_elements(embedding, rows),
        "radial_basis.frequencies": frequencies / options.length,
    }
    for number, layer in enumerate(_layers(network)):
        state |= _interaction(arrays, number, layer, options, rows) | _product(arrays, number, layer, options, rows)
    state |= _readouts(arrays, options)
    scale, shift = (
        _number(arrays, f"scale_shift.{kind}", getattr(options, f"atomic_inter_{kind}")) for kind in ("scale", "shift")
    )
    own = _energies_of_atoms(options, arrays)
    for name in arrays.names:
        if name.endswith("output_mask"):  # which components a layer gives at all
            arrays.take_any(name)
    arrays.refuse_rest("a MACE")
    constants = options.constants(elements)
    self_energies = {z: constants[z] + options.energy * (own[row] + shift) for z, row in zip(elements, rows, strict=True)}
    return ImportedPotential(section, elements, state, self_energies, scale * options.energy, options.unit_notes)


def _without_constants(options: MACEHyper, arrays: Arrays) -> Arrays:
    """The arrays without those that repeat what `hyper` says, which must agree with it."""
    stated: dict[str, float | tuple[int, ...]] = {
        "atomic_numbers": options.atomic_numbers,
        "num_interactions": options.num_interactions,
        "r_max": options.r_max,
        "radial_embedding.bessel_fn.r_max": options.r_max,
        "radial_embedding.bessel_fn.prefactor": math.sqrt(2.0 / options.r_max),
        "radial_embedding.cutoff_fn.r_max": options.r_max,
        "radial_embedding.cutoff_fn.p": options.num_polynomial_cutoff,
    }
    stated |= {name: False for name in arrays if name.endswith("_zeroed")}  # whether a basis function was left out
    for name, expected in stated.items():
        if name not in arrays:
            continue
        found = arrays[name]
        if found.shape != np.shape(expected) or not np.allclose(found, expected, rtol=CLOSE, atol=0.0):
            raise UserError(
                f"{PREFIX}{name}: must be {expected} by hyper (is {found.tolist()}); correct hyper, or write the weights of "
                "that very network"
            )
    return {name: array for name, array in arrays.items() if name not in stated}


def _layers(network: MACE) -> list[Layer]:
    return [layer for layer in network.layers if isinstance(layer, Layer)]


def _of_elements(table: Tensor, rows: list[int], *, axis: int = 0) -> Tensor:
    """Weights that are divided by the root of the number of elements, of some of them."""
    return table.index_select(axis, torch.tensor(rows)) * math.sqrt(len(rows) / table.shape[axis])


def _interaction(weights: Weights, number: int, layer: Layer, options: MACEHyper, rows: list[int]) -> State:
    theirs, ours = f"interactions.{number}", f"layers.{number}"
    state = irrep_matrices(weights, f"{theirs}.linear_up", f"{ours}.linear_in", layer.linear_in)
    state |= irrep_matrices(weights, f"{theirs}.linear", f"{ours}.linear_out", layer.linear_out)
    state |= _element_linear(weights, f"{theirs}.skip_tp", f"{ours}.of_element", layer.of_element, options, rows)
    radial = [
        weights.take(f"{theirs}.conv_tp_weights.layer{place}.weight", *weight.shape)
        for place, weight in enumerate(layer.radial.weights)
    ]
    radial[0] = radial[0] * options.length**1.5  # the unit of the radial functions is that of length^(-3/2)
    paths = layer.convolution.paths
    order = sorted(paths, key=lambda path: (path.target, path.source.degree, path.degree))
    radial[-1] = path_weights(weights, f"{theirs}.conv_tp", radial[-1], paths, order=order)
    return state | {f"{ours}.radial.weights.{place}": weight for place, weight in enumerate(radial)}


def _element_linear(
    weights: Weights, theirs: str, ours: str, like: ElementLinear, options: MACEHyper, rows: list[int]
) -> State:
    """Matrices of irreps for each element, (C, S, C), of which some are taken."""
    num_channels, num_elements = options.num_channels, len(options.atomic_numbers)
    shape = (len(like.irreps), num_channels, num_elements, num_channels)
    tables = weights.take(f"{theirs}.weight", math.prod(shape)).view(shape)
    return {
        f"{ours}.weights.{irrep}": _of_elements(table, rows, axis=1) for irrep, table in zip(like.irreps, tables, strict=True)
    }


def _product(weights: Weights, number: int, layer: Layer, options: MACEHyper, rows: list[int]) -> State:
    theirs, ours = f"products.{number}", f"layers.{number}"
    state = irrep_matrices(weights, f"{theirs}.linear", f"{ours}.linear_products", layer.linear_products)
    l_in, correlation = options.max_ell, options.correlation
    for place, irrep in enumerate(layer.targets):
        contraction = f"{theirs}.symmetric_contractions.contractions.{place}"
        for order in range(1, correlation + 1):
            name = f"{contraction}.{'weights_max' if order == correlation else f'weights.{correlation - 1 - order}'}"
            change = change_of_basis(weights, f"{contraction}.U_matrix_{order}", irrep, l_in, order)
            table = weights.take(name, len(options.atomic_numbers), change.shape[1], options.num_channels)
            key = f"{ours}.contraction.weights.{weight_name(irrep.degree, order)}"
            state[key] = torch.einsum("pq,sqc->spc", change.to(table.dtype), table[rows])
    return state


def _readouts(weights: Weights, options: MACEHyper) -> State:
    last, num_channels, num_hidden = options.num_interactions - 1, options.num_channels, options.section().readout_hidden
    state = {
        f"readouts.{number}.weights.0": weights.take(f"readouts.{number}.linear.weight", num_channels)[:, None]
        for number in range(last)
    }
    hidden = weights.take(f"readouts.{last}.linear_1.weight", num_channels * num_hidden)
    state[f"readouts.{last}.weights.0"] = hidden.view(num_channels, num_hidden)
    state[f"readouts.{last}.weights.1"] = weights.take(f"readouts.{last}.linear_2.weight", num_hidden)[:, None]
    return state


def _number(weights: Weights, name: str, stated: float) -> float:
    """A number among the weights, or else what `hyper` states."""
    if name not in weights:
        return stated
    values = weights.take_any(name)
    if values.size != 1:
        raise UserError(f"{PREFIX}{name}: must be one number (has {values.size}): networks of several heads cannot be imported")
    return float(values.item())


def _energies_of_atoms(options: MACEHyper, weights: Weights) -> list[float]:
    name, num_elements = "atomic_energies_fn.atomic_energies", len(options.atomic_numbers)
    if name not in weights:
        return list(options.atomic_energies or (0.0,) * num_elements)
    values = weights.take_any(name)
    if values.size != num_elements:
        raise UserError(
            f"{PREFIX}{name}: must be one energy for each of hyper.atomic_numbers, {num_elements} (has {values.size}): "
            "networks of several heads cannot be imported"
        )
    return [float(value) for value in values.ravel()]
