"""Allegro: equivariant features of edges, strictly local (Musaelian et al., Nature Communications 14, 579 (2023)).

    first:   x^0 = P MLP([C_zi, N_zj] * B R(d_ij));   V^0 = w^0 Y;   weights w of each degree and channel linear in the same MLP
    layer:   G_i = sum_j w_ij Y_ij / sqrt(mean number of neighbours);   V <- V x G_i;   [x, w] <- MLP([all x, scalars of V])
    energy:  E_i = s_zi sum_j MLP([all x]) / sqrt(2 mean number of neighbours)

with radial functions R that end smoothly at the cutoff, spherical harmonics Y(u_ij) of degrees up to l_max, and products of
tensors x channel by channel. Network and factors are those of the authors' program (0.8), whose weights it reproduces.

How it is computed is another thing: V is a linear function of V^0, by products with environments G that all edges of an atom
share, and all that is ever seen of V are its scalars. What reads these scalars of V^0 is the same for all edges of an atom, so
it is multiplied once for each atom (`nn/equivariant/channelwise_products.py`), and edges have no tensors but their harmonics.
Weights of environments, linear in the last hidden features of a network, are not computed either if these features are fewer:
they are summed with the harmonics, and the matrix comes after the sum.

N atoms, E edges, L degrees, B components of harmonics, S scalar features, U channels of tensors, K radial functions.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_receivers, at_senders, sum_over_edges
from modelforge.nn.cutoffs import polynomial_cutoff
from modelforge.nn.dense_networks import DenseNetwork, Part, Projected, cheaper, value_of
from modelforge.nn.equivariant.channelwise_products import ChannelwiseProduct
from modelforge.nn.equivariant.environments import EdgeRows, edge_rows, environments, environments_of_projected, readings
from modelforge.nn.equivariant.irreps import Irrep, irreps_of_product, natural_irreps
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics
from modelforge.nn.layers import ElementEmbedding
from modelforge.nn.radial import BesselBasis
from modelforge.potentials.potential import AtomicOutputs, NormalizedSums, Potential
from modelforge.section import Count, Length, SectionError

SCALAR = Irrep(0, 1)
Widths = tuple[Count, ...]


class AllegroSection(NormalizedSums):
    """Allegro: equivariant features of edges instead of atoms, strictly local; accurate from few structures."""

    other_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **NormalizedSums.other_names,
            "num_bessels": "num_bessel",
            "polynomial_cutoff_p": "cutoff_power",
            "scalar_embed_mlp_hidden_layers_width": "scalar_embed_hidden",
            "scalar_embed_mlp_hidden_layers_depth": "scalar_embed_hidden",
            "allegro_mlp_hidden_layers_width": "mlp_hidden",
            "allegro_mlp_hidden_layers_depth": "mlp_hidden",
            "readout_mlp_hidden_layers_width": "readout_hidden",
            "readout_mlp_hidden_layers_depth": "readout_hidden",
        }
    )
    name: Literal["allegro"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    l_max: Annotated[int, Field(ge=0, le=6)] = 2
    """Largest degree of the spherical harmonics and of the tensors."""
    parity: bool = True
    """Tensors of both parities of each degree, instead of the natural one only; makes a difference from three layers on."""
    num_layers: Count = 2
    """Products of tensors."""
    num_scalar_features: Count = 64
    """Scalar features of an edge; an even number."""
    num_tensor_features: Count = 32
    """Channels of the tensors."""
    num_bessel: Count = 8
    """Radial basis functions."""
    cutoff_power: Count = 6
    """Power p of the polynomial that brings the radial functions to zero at the cutoff."""
    scalar_embed_hidden: Widths = (64, 64)
    """Hidden layers of the network of distance and elements."""
    mlp_hidden: Widths = (128, 128)
    """Hidden layers of the network of each layer."""
    readout_hidden: Widths = (32,)
    """Hidden layers of the network that gives the energy of an edge."""
    tp_path_channel_coupling: bool = True
    """A weight for each path and channel of a product of tensors, instead of one for each path."""

    @model_validator(mode="after")
    def _features_of_two_atoms(self) -> "AllegroSection":
        if self.num_scalar_features % 2:
            raise SectionError(
                ("num_scalar_features", f"must be even: half of them begin with each atom (got {self.num_scalar_features})")
            )
        return self

    def build(self, elements: Sequence[int]) -> "Allegro":
        """A network with random weights for these elements."""
        return Allegro(self, elements)


class Layer(nn.Module):
    """A product of tensors and the network behind it."""

    def __init__(self, section: AllegroSection, sources: Sequence[Irrep], targets: Sequence[Irrep], *, number: int) -> None:
        super().__init__()
        num_scalars, num_channels, l_max = section.num_scalar_features, section.num_tensor_features, section.l_max
        of_paths = num_channels if section.tp_path_channel_coupling else 1
        self.product = ChannelwiseProduct(sources, targets, l_max=l_max, num_channels=of_paths)
        is_last = number == section.num_layers - 1
        outputs = [num_scalars] if is_last else [num_scalars, (l_max + 1) * num_channels]
        self.network = DenseNetwork([num_scalars] * (number + 1) + [num_channels], section.mlp_hidden, outputs)


class Allegro(Potential):
    """The network of the module's docstring."""

    element_scales: Tensor

    def __init__(self, section: AllegroSection, elements: Sequence[int]) -> None:
        num_scalars, of_weights = section.num_scalar_features, (section.l_max + 1) * section.num_tensor_features
        super().__init__(section, elements=elements, num_scalars=num_scalars)
        assert section.avg_num_neighbors is not None
        self.avg_num_neighbors, self.cutoff_power = section.avg_num_neighbors, section.cutoff_power
        self.l_max, self.num_channels = section.l_max, section.num_tensor_features
        with_state = {"charge": section.charge_embedding, "spin": section.spin_embedding}
        self.receiver_embedding = ElementEmbedding(elements, num_scalars // 2, **with_state)
        self.sender_embedding = ElementEmbedding(elements, num_scalars // 2, **with_state)
        self.radial_basis = BesselBasis(num_radial=section.num_bessel, cutoff=section.cutoff)
        self.harmonics = SphericalHarmonics(section.l_max)
        self.of_distance = DenseNetwork([section.num_bessel], (), [num_scalars // 2, num_scalars // 2])
        self.of_pair = DenseNetwork([num_scalars // 2, num_scalars // 2], section.scalar_embed_hidden, [num_scalars])
        self.first = DenseNetwork([num_scalars], (), [of_weights, num_scalars, of_weights])
        irreps = pairwise(irreps_of_layers(section))
        self.layers = nn.ModuleList(Layer(section, *between, number=number) for number, between in enumerate(irreps))
        self.readout = DenseNetwork([num_scalars] * (section.num_layers + 1), section.readout_hidden, [1])
        self.register_buffer("element_scales", torch.ones(len(elements)))

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, and sums over edges of the last scalar features."""
        distance = graph.edge_vectors.norm(dim=1)  # (E,)
        harmonics = self.harmonics(graph.edge_vectors / distance[:, None])  # (E, B)
        rows, shared = edge_rows(graph, l_max=self.l_max), edge_rows(graph, l_max=self.l_max, by_degree=False)
        of_tensors, scalars, *others = self.first([cheaper(self._pairs(distance, graph))])
        features, around, weights = list[Part](), list[Tensor](), self._by_degree(of_tensors)
        for layer in self.all_layers():
            features.append(cheaper(scalars))
            around.append(self._environment(others[0], harmonics, rows, shared))
            read = readings(harmonics, self._reading(around), rows)  # (E, L, U)
            scalars, *others = layer.network([*features, (weights * read).sum(dim=1)])
        (energies,) = self.readout([*features, scalars])
        column = self.receiver_embedding.column[graph.atomic_numbers]
        return AtomicOutputs.of(self._sum(energies, graph)[:, 0] * self.element_scales[column], self._sum(scalars, graph))

    def _pairs(self, distance: Tensor, graph: AtomicGraph) -> Part:
        """Features of two elements at a distance, (E, S)."""
        radial = (self.cutoff / math.pi) * self.radial_basis(distance)
        of_receivers, of_senders = self.of_distance(
            [radial * polynomial_cutoff(distance, self.cutoff, power=self.cutoff_power)[:, None]]
        )
        own, other = at_receivers(self.receiver_embedding(graph), graph), at_senders(self.sender_embedding(graph), graph)
        features: list[Part] = self.of_pair([own * value_of(of_receivers), other * value_of(of_senders)])
        return features[0]

    def _environment(self, weights: Part, harmonics: Tensor, rows: EdgeRows, shared: EdgeRows) -> Tensor:
        """(B, N, U); the matrix behind the features that weights are made of comes after the sum if these are fewer."""
        factor: float = self.avg_num_neighbors**-0.5
        if isinstance(weights, Projected) and weights.rows.shape[1] <= self.num_channels:
            return environments_of_projected(weights, harmonics, shared) * factor
        return environments(self._by_degree(weights), harmonics, rows) * factor

    def _by_degree(self, weights: Part) -> Tensor:
        return value_of(weights).reshape(-1, self.l_max + 1, self.num_channels)  # (E, L, U)

    def _reading(self, around: Sequence[Tensor]) -> Tensor:
        """What reads the scalar of the last product of all that there are environments for of the first tensors, (B, N, U)."""
        with torch.autocast(around[0].device.type, enabled=False):
            products = [layer.product for layer in self.all_layers()[: len(around)]]
            reading: Tensor = products[-1].scalar(around[-1])
            for product, environment in zip(reversed(products[:-1]), reversed(around[:-1]), strict=True):
                reading = product.before(reading, environment)
            return reading

    def all_layers(self) -> list[Layer]:
        """The layers, as what they are."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _sum(self, per_edge: Part, graph: AtomicGraph) -> Tensor:
        """Over the edges of each atom; of what is projected, before it is."""
        rows = per_edge if isinstance(per_edge, Tensor) else per_edge.rows
        total = sum_over_edges(rows.to(graph.edge_vectors.dtype), graph) * (2.0 * self.avg_num_neighbors) ** -0.5
        with torch.autocast(total.device.type, enabled=False):
            return total if isinstance(per_edge, Tensor) else value_of(Projected(total, per_edge.matrix, per_edge.factor))


def irreps_of_layers(section: AllegroSection) -> list[list[Irrep]]:
    """Those of tensors before the first layer and after each: those that come about and lead to a scalar in the end."""
    natural = natural_irreps(section.l_max)
    allowed = [Irrep(degree, parity) for degree in range(section.l_max + 1) for parity in (1, -1)]
    found = [natural]
    for number in range(section.num_layers):
        wanted = [SCALAR] if number == section.num_layers - 1 else allowed if section.parity else natural
        found.append([irrep for irrep in wanted if _is_reached(irrep, found[-1], natural)])
    for number in reversed(range(section.num_layers)):
        found[number] = [irrep for irrep in found[number] if any(_is_reached(o, [irrep], natural) for o in found[number + 1])]
    return found


def _is_reached(irrep: Irrep, sources: Sequence[Irrep], natural: Sequence[Irrep]) -> bool:
    return any(irrep in irreps_of_product(source, other) for source in sources for other in natural)
