"""NequIP of the package nequip (0.19): its `state_dict` with the prefix `model.func`.

Radial weights come in the order of its paths, which this package has in another, and matrices of irreps in flat arrays.
T types, V numbers of an element, K radial functions, F features of an irrep, P paths, C channels.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from modelforge.importing.e3nn_arrays import irrep_matrices, path_weights
from modelforge.importing.hyper import read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.typed_networks import ROOT, State, TypedHyper, imported_network
from modelforge.importing.weights import Weights
from modelforge.nn.equivariant.convolutions import Path
from modelforge.potentials.nequip import Layer, NequIP, NequIPSection
from modelforge.section import Count


class NequIPHyper(TypedHyper):
    """Options of a NequIP; those with one choice can only be imported with that."""

    model: Literal["nequip", "nequip.model.NequIPGNNModel"] = "nequip"
    l_max: Annotated[int, Field(ge=0, le=6)] = 1
    num_layers: Count = 4
    num_features: Count = 32
    num_bessels: Count = 8
    bessel_trainable: bool = False
    polynomial_cutoff_p: Count = 6
    radial_mlp_depth: Count = 1
    radial_mlp_width: Count = 128
    type_embed_num_features: Count | None = None
    readout_mlp_hidden_layers_depth: Literal[0] = 0
    readout_mlp_hidden_layers_width: Count | None = None  # of no hidden layers
    readout_mlp_nonlinearity: str | None = "silu"  # likewise

    @field_validator("num_features", mode="before")
    @classmethod
    def _is_the_same_for_all_irreps(cls, given: object) -> object:
        if isinstance(given, tuple) and given:
            if any(width != given[0] for width in given):
                raise ValueError(f"must be the same for all irreps (got {list(given)})")
            return given[0]
        return given

    @property
    def section(self) -> NequIPSection:
        """The same network as a section of this package."""
        return NequIPSection(
            name="nequip",
            cutoff=self.r_max * self.length,
            l_max=self.l_max,
            parity=self.parity,
            num_features=self.num_features,
            num_layers=self.num_layers,
            num_bessel=self.num_bessels,
            cutoff_power=self.polynomial_cutoff_p,
            radial_hidden=(self.radial_mlp_width,) * self.radial_mlp_depth,
            num_embedding=self.type_embed_num_features or self.num_features,
            avg_num_neighbors=self.avg_num_neighbors,
        )


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options, arrays = read_hyper(NequIPHyper, hyper), Weights(weights)
    section = options.section
    network = section.build(options.chosen)
    embedding = arrays.take(f"{ROOT}.type_embed.embed_module.weight", len(options.numbers), network.embedding.weight.shape[1])
    frequencies = arrays.take(f"{ROOT}.bessel_encode.bessel_weights", 1, options.num_bessels)[0]
    state: State = {
        "embedding.weight": embedding[options.rows],
        "radial_basis.frequencies": frequencies * (math.pi / section.cutoff),
        "readout": arrays.take(f"{ROOT}.per_atom_energy_readout.mlp_module.mlp.0.weight", options.num_features, 1),
    }
    for number, layer in enumerate(_layers(network)):
        state |= _layer(arrays, f"{ROOT}.layer{number}_convnet.conv", f"layers.{number}", layer)
        first = f"layers.{number}.radial.weights.0"
        state[first] = state[first] * options.length**2  # the unit of the radial functions is that of length^-2
    for name in arrays.names:
        if name.endswith("output_mask"):  # which components a layer gives at all
            arrays.take_any(name)
    return imported_network(options, arrays, section, state, what="a NequIP")


def _layers(network: NequIP) -> list[Layer]:
    return [layer for layer in network.layers if isinstance(layer, Layer)]


def _layer(weights: Weights, theirs: str, ours: str, layer: Layer) -> State:
    radial = [
        weights.take(f"{theirs}.edge_mlp.mlp.{2 * place}.weight", *weight.shape)
        for place, weight in enumerate(layer.radial.weights)
    ]
    paths = layer.convolution.paths
    radial[-1] = path_weights(weights, f"{theirs}.tp_scatter.tp", radial[-1], paths, order=_their_order(paths))
    state = {f"{ours}.radial.weights.{place}": weight for place, weight in enumerate(radial)}
    state |= irrep_matrices(weights, f"{theirs}.linear_1", f"{ours}.linear_in", layer.linear_in)
    order = sorted(layer.linear_out.irreps)
    state |= irrep_matrices(weights, f"{theirs}.linear_2", f"{ours}.linear_out", layer.linear_out, order=order)
    if layer.self_connection is not None:
        state |= irrep_matrices(weights, f"{theirs}.sc", f"{ours}.self_connection", layer.self_connection)
    return state


def _their_order(paths: list[Path]) -> list[Path]:
    """By source, then degree of the harmonics, then that of the result."""
    sources = list(dict.fromkeys(path.source for path in paths))
    return sorted(paths, key=lambda path: (sources.index(path.source), path.degree, path.target.degree))
