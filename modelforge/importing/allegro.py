"""Allegro of the package allegro (0.8), an extension of nequip: its `state_dict` with the prefix `model.func`.

Their matrices take and give parts side by side, of which this package has a matrix each; weights of channels come channel by
channel there, degree by degree here. Paths of products are in the same order.

S scalar features, U channels of tensors, L degrees of the harmonics.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.hyper import read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.typed_networks import ROOT, State, TypedHyper, imported_network
from modelforge.importing.weights import PREFIX, Weights
from modelforge.nn.dense_networks import DenseNetwork
from modelforge.potentials.allegro import AllegroSection, Layer
from modelforge.section import Count, CountOrZero, Section

EMBED = f"{ROOT}.radial_chemical_embed"
EMBEDDING = "allegro.nn.TwoBodyBesselScalarEmbed"
SAME_COUPLINGS = 1e-5  # largest difference; files may be in single precision


class RadialEmbedding(Section):
    """What the section `radial_chemical_embed` says."""

    target: Annotated[str, Field(alias="_target_")]
    num_bessels: Count = 8
    bessel_trainable: bool = False
    polynomial_cutoff_p: Count = 6


class AllegroHyper(TypedHyper):
    """Options of an Allegro; those with one choice can only be imported with that."""

    model: Literal["allegro", "allegro.model.AllegroModel"] = "allegro"
    radial_chemical_embed: RadialEmbedding
    num_layers: Count = 2
    num_scalar_features: Annotated[Count, Field(multiple_of=2)] = 64
    num_tensor_features: Count = 16
    scalar_embed_mlp_hidden_layers_depth: CountOrZero = 1
    scalar_embed_mlp_hidden_layers_width: Count = 64
    allegro_mlp_hidden_layers_depth: CountOrZero = 1
    allegro_mlp_hidden_layers_width: Count = 64
    readout_mlp_hidden_layers_depth: CountOrZero = 1
    readout_mlp_hidden_layers_width: Count = 32
    scalar_embed_mlp_nonlinearity: Literal["silu"] = "silu"
    allegro_mlp_nonlinearity: Literal["silu"] = "silu"
    readout_mlp_nonlinearity: Literal["silu"] = "silu"
    tp_path_channel_coupling: bool = True

    @field_validator("radial_chemical_embed", mode="before")
    @classmethod
    def _has_bessel_functions(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("_target_") != EMBEDDING:
            raise ValueError(f"must have {EMBEDDING} as _target_ (got {given})")
        return given

    @property
    def section(self) -> AllegroSection:
        """The same network as a section of this package."""
        return AllegroSection(
            name="allegro",
            cutoff=self.r_max * self.length,
            l_max=self.l_max,
            parity=self.parity,
            num_layers=self.num_layers,
            num_scalar_features=self.num_scalar_features,
            num_tensor_features=self.num_tensor_features,
            num_bessel=self.radial_chemical_embed.num_bessels,
            cutoff_power=self.radial_chemical_embed.polynomial_cutoff_p,
            scalar_embed_hidden=(self.scalar_embed_mlp_hidden_layers_width,) * self.scalar_embed_mlp_hidden_layers_depth,
            mlp_hidden=(self.allegro_mlp_hidden_layers_width,) * self.allegro_mlp_hidden_layers_depth,
            readout_hidden=(self.readout_mlp_hidden_layers_width,) * self.readout_mlp_hidden_layers_depth,
            tp_path_channel_coupling=self.tp_path_channel_coupling,
            avg_num_neighbors=self.avg_num_neighbors,
        )


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options, arrays = read_hyper(AllegroHyper, hyper), Weights(weights)
    section = options.section
    network = section.build(options.chosen)
    state = _embedding(arrays, options) | _first(arrays, options)
    state |= _dense(arrays, f"{EMBED}.type_embed.basis_linear", "of_distance", network.of_distance)
    state |= _dense(arrays, f"{ROOT}.scalar_embed_mlp.mlp_module", "of_pair", network.of_pair)
    for number, layer in enumerate(network.all_layers()):
        state |= _layer(arrays, number, layer, options)
    state |= _dense(arrays, f"{ROOT}.edge_readout.mlp_module", "readout", network.readout)
    return imported_network(options, arrays, section, state, what="an Allegro")


def _embedding(weights: Weights, options: AllegroHyper) -> State:
    num_types, num_bessel, half = (
        len(options.numbers),
        options.radial_chemical_embed.num_bessels,
        options.num_scalar_features // 2,
    )
    frequencies = weights.take(f"{EMBED}.bessel_encode.bessel_weights", 1, num_bessel)[0]
    return {
        "radial_basis.frequencies": frequencies * (math.pi / (options.r_max * options.length)),
        "receiver_embedding.weight": weights.take(f"{EMBED}.type_embed.center_embed.weight", num_types, half)[options.rows],
        "sender_embedding.weight": weights.take(f"{EMBED}.type_embed.neighbor_embed.weight", num_types, half)[options.rows],
    }


def _first(weights: Weights, options: AllegroHyper) -> State:
    """The linear layers behind the first network, which are one here."""
    num_scalars, of_weights = options.num_scalar_features, (options.l_max + 1) * options.num_tensor_features
    tensors = weights.take(f"{ROOT}.tensor_embed.env_embed_linear.mlp.0.weight", num_scalars, of_weights)
    name = f"{ROOT}.allegro.first_layer_env_embed_projection.mlp.0.weight"
    scalars, around = torch.split(weights.take(name, num_scalars, num_scalars + of_weights), [num_scalars, of_weights], dim=1)
    parts = (_by_degree(tensors, options), scalars, _by_degree(around, options))
    return {f"first.layers.0.{place}.0": part for place, part in enumerate(parts)}


def _layer(weights: Weights, number: int, layer: Layer, options: AllegroHyper) -> State:
    theirs, ours, product = f"{ROOT}.allegro.tps.{number}", f"layers.{number}", layer.product
    _refuse_other_couplings(weights, f"{theirs}.w3j", product.path_coefficients())
    num_paths, num_channels = product.weights.shape
    shape = ((num_channels,) if options.tp_path_channel_coupling else ()) + ((num_paths,) if num_paths > 1 else ())
    of_paths = weights.take(f"{theirs}.weights", *shape).reshape(num_channels, num_paths).T
    state = _dense(weights, f"{ROOT}.allegro.latents.{number}", f"{ours}.network", layer.network)
    last = f"{ours}.network.layers.{len(layer.network.layers) - 1}.1."  # the weights of the next layer, where there is one
    state |= {name: _by_degree(part, options) for name, part in state.items() if name.startswith(last)}
    return state | {f"{ours}.product.weights": of_paths}


def _dense(weights: Weights, theirs: str, ours: str, network: DenseNetwork) -> State:
    """The blocks of their matrices, which stand at every other place."""
    state: State = {}
    for place, (rows, columns) in enumerate(network.widths):
        matrix = weights.take(f"{theirs}.mlp.{2 * place}.weight", sum(rows), sum(columns))
        for column, part in enumerate(torch.split(matrix, columns, dim=1)):
            blocks = torch.split(part, rows)
            state |= {f"{ours}.layers.{place}.{column}.{row}": block for row, block in enumerate(blocks)}
    return state


def _by_degree(matrix: Tensor, options: AllegroHyper) -> Tensor:
    """Columns (U, L) -> (L, U)."""
    return matrix.view(-1, options.num_tensor_features, options.l_max + 1).transpose(1, 2).flatten(1)


def _refuse_other_couplings(weights: Weights, name: str, ours: Tensor) -> None:
    """Products of tensors by other coefficients are other products; the file has those of paths to scalars as diagonals."""
    if name not in weights:
        return
    theirs = torch.from_numpy(weights.take_any(name)).double()
    theirs = theirs if len(ours) > 1 else theirs[None]  # they leave out the axis of a single path
    expected = ours if theirs.ndim == ours.ndim else ours.diagonal(dim1=1, dim2=2).transpose(1, 2)  # (P, A, C)
    if theirs.shape != expected.shape or float((theirs - expected).abs().max()) > SAME_COUPLINGS:
        raise UserError(
            f"{PREFIX}{name}: must be the coefficients of e3nn 0.6 for the paths that hyper describes; correct hyper, or write "
            "the weights with the package's present version"
        )
