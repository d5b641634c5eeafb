"""NequIP: equivariant convolutions (Batzner et al., Nature Communications 13, 2453 (2022), arXiv:2101.03164).

    layer:  m_i = sum_j R(d_ij) (W_1 h_j x Y(u_ij)) / sqrt(mean number of neighbours);   h_i <- gate(W_2 m_i + W_{z_i} h_i)
    gate:   scalars through silu (0e) and tanh (0o), all others times silu of a scalar of their own

with features h of irreps (l, parity), spherical harmonics Y of degrees up to l_max, and a network R of the distance for each
path and channel. The last layer has scalars only, and a linear readout. Network and factors are those of the authors' program
(version 0.19), whose weights it reproduces. Exact changes of how it is computed: R once per pair of atoms (it is the same for
both directions); the self-connection W_z, given by a product with the embedding of the element, once per element; products with
harmonics and sums over neighbours in one pass (`nn/equivariant/edge_products.py`). A training step of five molecules of
acetylacetone (32 features, l_max 1, 4 layers; ms on one core): 40 with sums by `embedding_bag`, 21 with the same in C, 15
compiled; the authors' program 90, and 48 compiled.

N atoms, E edges, Q pairs, F features of an irrep, K radial functions.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.cutoffs import polynomial_cutoff
from modelforge.nn.dense_networks import MLP_GAIN
from modelforge.nn.elements.grouped_products import RowGroups, row_groups
from modelforge.nn.equivariant.convolutions import Convolution, EdgeTables
from modelforge.nn.equivariant.irreps import Irrep, natural_irreps
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics
from modelforge.nn.equivariant.unit_variance import SILU_GAIN, TANH_GAIN, ElementLinear, IrrepLinear, RadialNetwork
from modelforge.nn.layers import ElementEmbedding
from modelforge.nn.neighbours.pairs import mean_of_pair, pairs_of
from modelforge.nn.radial import BesselBasis
from modelforge.potentials.potential import AtomicOutputs, NormalizedSums, Potential
from modelforge.section import Count, Length

Features = dict[Irrep, Tensor]
SCALAR = Irrep(0, 1)
PSEUDOSCALAR = Irrep(0, -1)


class NequIPSection(NormalizedSums):
    """NequIP: equivariant features by tensor products; accurate from few structures."""

    other_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **NormalizedSums.other_names,
            "num_bessels": "num_bessel",
            "polynomial_cutoff_p": "cutoff_power",
            "radial_mlp_width": "radial_hidden",
            "radial_mlp_depth": "radial_hidden",
            "type_embed_num_features": "num_embedding",
        }
    )
    name: Literal["nequip"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    l_max: Annotated[int, Field(ge=0, le=6)] = 2
    """Largest degree of the spherical harmonics and of the features."""
    parity: bool = True
    """Features of both parities of each degree, instead of the natural one only."""
    num_features: Count = 32
    """Channels of each irrep."""
    num_layers: Count = 4
    """Convolutions."""
    num_bessel: Count = 8
    """Radial basis functions."""
    cutoff_power: Count = 6
    """Power p of the polynomial that brings the radial functions to zero at the cutoff."""
    radial_hidden: tuple[Count, ...] = (128,)
    """Hidden layers of the radial networks."""
    num_embedding: Count | None = None
    """Numbers that stand for an element; as many as features where not given."""

    def build(self, elements: Sequence[int]) -> "NequIP":
        """A network with random weights for these elements."""
        return NequIP(self, elements)


class Layer(nn.Module):
    """A convolution with its linear layers, self-connection and gate."""

    def __init__(
        self, section: NequIPSection, sources: Mapping[Irrep, int], wanted: Sequence[Irrep], *, is_first: bool
    ) -> None:
        """`sources`: irreps of the features and their channels, as many of each."""
        super().__init__()
        l_max, num_features = section.l_max, section.num_features
        num_channels = next(iter(sources.values()))
        self.convolution = Convolution(list(sources), {SCALAR, *wanted}, l_max=l_max)
        self.targets = [irrep for irrep in wanted if irrep in self.convolution.targets]
        self.gated = [irrep for irrep in self.targets if irrep.degree > 0]
        targets = dict.fromkeys(self.targets, num_features)
        targets[SCALAR] = num_features * (1 + len(self.gated))  # gates stand behind the scalars
        summed = {irrep: num_channels * self.convolution.num_paths_to(irrep) for irrep in self.targets}
        assert section.avg_num_neighbors is not None
        self.linear_in = IrrepLinear(sources, sources, factor=section.avg_num_neighbors**-0.5)
        widths = (section.num_bessel, *section.radial_hidden, len(self.convolution.paths) * num_channels)
        self.radial = RadialNetwork(widths, gain=MLP_GAIN, distribution="uniform")
        self.linear_out = IrrepLinear(summed, targets)
        num_attributes = section.num_embedding or num_features
        self.self_connection = None if is_first else ElementLinear(sources, targets, num_attributes=num_attributes)

    def forward(
        self, features: Features, radial: Tensor, harmonics: Tensor, attributes: Tensor, groups: RowGroups, tables: EdgeTables
    ) -> Features:
        """Features (2l+1, N, F) of each irrep, after the gate."""
        new = self.linear_out(self.convolution(self.linear_in(features), self.radial(radial), harmonics, tables))
        if self.self_connection is not None:
            for irrep, own in self.self_connection(features, attributes, groups).items():
                new[irrep] = new[irrep] + own
        return self._gate(new)

    def _gate(self, features: Features) -> Features:
        activated = SILU_GAIN * functional.silu(features[SCALAR])
        scalars, *gates = torch.split(activated, activated.shape[2] // (1 + len(self.gated)), dim=2)
        results = {SCALAR: scalars}
        if PSEUDOSCALAR in self.targets:
            results[PSEUDOSCALAR] = TANH_GAIN * torch.tanh(features[PSEUDOSCALAR])
        return results | {irrep: features[irrep] * gate for irrep, gate in zip(self.gated, gates, strict=True)}


class NequIP(Potential):
    """The network of the module's docstring."""

    element_scales: Tensor

    def __init__(self, section: NequIPSection, elements: Sequence[int]) -> None:
        num_features, num_embedding = section.num_features, section.num_embedding or section.num_features
        layers: list[Layer] = []
        sources = {SCALAR: num_embedding}
        for number in range(section.num_layers):
            wanted = _hidden(section) if number < section.num_layers - 1 else [SCALAR]
            layers.append(Layer(section, sources, wanted, is_first=number == 0))
            last_sources, sources = sources, dict.fromkeys(layers[-1].targets, num_features)
        num_vectors = last_sources.get(Irrep(1, -1), 0)
        super().__init__(section, elements=elements, num_scalars=num_features, num_vectors=num_vectors)
        self.embedding = ElementEmbedding(elements, num_embedding, charge=section.charge_embedding, spin=section.spin_embedding)
        self.radial_basis = BesselBasis(num_radial=section.num_bessel, cutoff=section.cutoff)
        self.harmonics = SphericalHarmonics(section.l_max)
        self.cutoff_power = section.cutoff_power
        self.layers = nn.ModuleList(layers)
        self.readout = nn.Parameter(torch.randn(num_features, 1))
        self.register_buffer("element_scales", torch.ones(len(elements)))

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, the scalars of the last layer and the vectors before it."""
        pairs = pairs_of(graph.reverse_edge)
        distance = graph.edge_vectors.norm(dim=1)  # (E,)
        harmonics = self.harmonics(graph.edge_vectors / distance[:, None])  # (E, B)
        radial = self._radial(mean_of_pair(distance, pairs))  # (Q, K)
        column = self.embedding.column[graph.atomic_numbers]
        groups = row_groups(column, num_groups=len(self.elements))
        tables = EdgeTables(graph, pairs)
        features: Features = {SCALAR: self.embedding(graph)[None]}
        for layer in self.layers:
            before, features = features, layer(features, radial, harmonics, self.embedding.weight, groups, tables)
        scalars = features[SCALAR][0].to(distance.dtype)
        with torch.autocast(scalars.device.type, enabled=False):
            energies = (scalars @ (self.readout * self.readout.shape[0] ** -0.5))[:, 0] * self.element_scales[column]
        vectors = before[Irrep(1, -1)].transpose(0, 1).to(distance.dtype) if self.num_vectors else None
        return AtomicOutputs.of(energies, scalars, vectors=vectors)

    def _radial(self, distance: Tensor) -> Tensor:
        envelope = polynomial_cutoff(distance, self.cutoff, power=self.cutoff_power)[:, None]
        radial: Tensor = self.radial_basis(distance) * envelope
        return (2.0 / self.cutoff) * radial


def _hidden(section: NequIPSection) -> list[Irrep]:
    if not section.parity:
        return natural_irreps(section.l_max)
    return [Irrep(degree, parity) for degree in range(section.l_max + 1) for parity in (1, -1)]
