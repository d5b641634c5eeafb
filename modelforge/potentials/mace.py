"""MACE: equivariant message passing of high body order (Batatia et al., NeurIPS 2022, arXiv:2206.07697).

    layer:  A_i = W_2 sum_j R(d_ij) (W_1 h_j x Y(u_ij)) / mean number of neighbours;   h_i <- W_3 B(A_i) + W_{z_i} h_i

with features h of natural parity, spherical harmonics Y, a network R of the distance for each path and channel, and B the
symmetric polynomials of A (`nn/equivariant/symmetric_contraction.py`). The energy is the sum of readouts of the scalars of all
layers; the last layer has scalars only. Network and factors are those of the authors' program (mace-torch 0.3), whose weights
it takes.
Exact changes of how it is computed: R once per pair of atoms (it is the same for both directions); matrices of an element
instead of products with one-hot vectors; linear maps of the first features once per element; B by the symmetric part of its
couplings (8 of 23, 12 of 51 functions), in blocks of equal mirror symmetry: 9 ms in the place of 615 for B with its derivatives
(75 atoms, 32 channels), of about 25 for a step (17 compiled; the authors' program 140).

N atoms, E edges, Q pairs, Z elements, C channels, K radial functions.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.cutoffs import polynomial_cutoff
from modelforge.nn.elements.grouped_products import RowGroups, row_groups
from modelforge.nn.equivariant.convolutions import Convolution, EdgeTables
from modelforge.nn.equivariant.irreps import Irrep, natural_irrep, natural_irreps
from modelforge.nn.equivariant.joined_rows import joined, parted
from modelforge.nn.equivariant.product_basis import num_couplings
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics
from modelforge.nn.equivariant.symmetric_contraction import SymmetricContraction
from modelforge.nn.equivariant.unit_variance import SILU_GAIN, ElementLinear, IrrepLinear, RadialNetwork
from modelforge.nn.layers import ElementEmbedding, without_autocast
from modelforge.nn.neighbours.pairs import mean_of_pair, pairs_of
from modelforge.nn.radial import BesselBasis
from modelforge.potentials.potential import AtomicOutputs, NormalizedSums, Potential
from modelforge.section import Count, Length, SectionError

Features = dict[Irrep, Tensor]
SCALAR = natural_irrep(0)
VECTOR = natural_irrep(1)
LARGEST_TABLES = 0.5  # GB of coupling matrices: to build as many takes about four times the memory, and 6 s


class MACESection(NormalizedSums):
    """MACE: equivariant features by polynomials of what an atom sees; accurate from few structures, in few layers."""

    other_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **NormalizedSums.other_names,
            "max_L": "l_max",
            "num_interactions": "num_layers",
            "num_radial_basis": "num_bessel",
            "num_cutoff_basis": "cutoff_power",
            "num_polynomial_cutoff": "cutoff_power",
            "radial_MLP": "radial_hidden",
            "MLP_irreps": "readout_hidden",
            "hidden_irreps": "num_channels and l_max",
        }
    )
    name: Literal["mace"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    max_ell: Annotated[int, Field(ge=0, le=6)] = 3
    """Largest degree of the spherical harmonics."""
    l_max: Annotated[int, Field(ge=0, le=6)] = 1
    """Largest degree of the features between layers."""
    num_channels: Count = 64
    """Channels of each irrep."""
    num_layers: Count = 2
    """Interactions."""
    correlation: Literal[1, 2, 3] = 3
    """Largest number of neighbours that a polynomial couples, beside the atom itself."""
    num_bessel: Count = 8
    """Radial basis functions."""
    cutoff_power: Count = 5
    """Power p of the polynomial that brings the radial functions to zero at the cutoff."""
    radial_hidden: tuple[Count, ...] = (64, 64, 64)
    """Hidden layers of the radial networks."""
    readout_hidden: Count = 16
    """Width of the hidden layer of the last readout."""
    first_interaction: Literal["residual", "plain"] = "residual"
    """First layer with a matrix of the element from the features to the results, or for the sums over neighbours."""

    @model_validator(mode="after")
    def _harmonics_reach_features(self) -> "MACESection":
        if self.l_max > self.max_ell:
            raise SectionError(
                ("l_max", f"must not exceed potential.max_ell = {self.max_ell} (got {self.l_max}); raise max_ell")
            )
        return self

    @model_validator(mode="after")
    def _features_between_layers_exist(self) -> "MACESection":
        usual = type(self).model_fields["l_max"].default  # a resolved experiment names it too
        if self.num_layers == 1 and self.l_max not in (0, usual):
            remedy = "as it is of the features between layers; remove it, or raise num_layers"
            raise SectionError(("l_max", f"has no effect with num_layers = 1, {remedy}"))
        return self

    @model_validator(mode="after")
    def _tables_are_small_enough(self) -> "MACESection":
        degrees = range(self.l_max + 1 if self.num_layers > 1 else 1)
        size = 1e-9 * sum(_bytes_of_couplings(self.max_ell, degree, self.correlation) for degree in degrees)
        if size > LARGEST_TABLES:
            others = f"l_max = {self.l_max} and correlation = {self.correlation}"
            what = f"with {others} asks for tables of {size:.1f} GB, where {LARGEST_TABLES} are allowed (got {self.max_ell})"
            raise SectionError(("max_ell", f"{what}; lower max_ell, l_max or correlation, as degrees up to 4 always fit"))
        return self

    def build(self, elements: Sequence[int]) -> "MACE":
        """A network with random weights for these elements."""
        return MACE(self, elements)


def _bytes_of_couplings(max_ell: int, degree: int, order: int) -> int:
    """Of the coupling matrices of one degree, in double precision."""
    num_components = [natural_irrep(degree).dimension, *[(max_ell + 1) ** 2] * order]
    return 8 * num_couplings(max_ell, degree, order) * math.prod(num_components)


class Atoms(NamedTuple):
    """Which elements the rows of features are of: atoms, or the elements themselves."""

    columns: Tensor  # (N,) from 0 to Z - 1
    groups: RowGroups


def _atoms(columns: Tensor, *, num_elements: int) -> Atoms:
    return Atoms(columns, row_groups(columns, num_groups=num_elements))


class Layer(nn.Module):
    """An interaction and the product basis of its sums."""

    def __init__(
        self, section: MACESection, sources: Sequence[Irrep], targets: Sequence[Irrep], *, num_elements: int, is_plain: bool
    ) -> None:
        super().__init__()
        num_channels, max_ell, summed = section.num_channels, section.max_ell, natural_irreps(section.max_ell)
        before, between, after = (dict.fromkeys(irreps, num_channels) for irreps in (sources, summed, targets))
        self.convolution = Convolution(sources, summed, l_max=max_ell)
        self.summed, self.targets = summed, targets
        assert section.avg_num_neighbors is not None
        self.linear_in = IrrepLinear(before, before)
        widths = (section.num_bessel, *section.radial_hidden, len(self.convolution.paths) * num_channels)
        self.radial = RadialNetwork(widths, gain=SILU_GAIN, distribution="normal")
        paths = {irrep: num_channels * self.convolution.num_paths_to(irrep) for irrep in summed}
        self.linear_out = IrrepLinear(paths, between, factor=1.0 / section.avg_num_neighbors)
        self.is_plain = is_plain
        ends = (between, between) if is_plain else (before, after)
        self.of_element = ElementLinear(*ends, num_attributes=num_elements)
        self.contraction = SymmetricContraction(
            max_ell,
            [irrep.degree for irrep in targets],
            correlation=section.correlation,
            num_elements=num_elements,
            num_channels=num_channels,
        )
        self.linear_products = IrrepLinear(after, after)

    def of_features(self, features: Features, atoms: Atoms) -> tuple[Features, Features]:
        """What neighbours see of an atom, and what it keeps itself, from its features (2l+1, N, C)."""
        own = {} if self.is_plain else self.of_element(features, None, atoms.groups)
        return self.linear_in(features), own

    def forward(
        self, seen: Features, own: Features, radial: Tensor, harmonics: Tensor, atoms: Atoms, tables: EdgeTables
    ) -> Features:
        """New features (2l+1, N, C)."""
        sums = self.linear_out(self.convolution(seen, self.radial(radial), harmonics, tables))
        if self.is_plain:
            sums = self.of_element(sums, None, atoms.groups)
        components = joined([sums[irrep] for irrep in self.summed]).transpose(0, 1)  # (N, n, C)
        polynomials = self.contraction(components, atoms.columns, atoms.groups).transpose(0, 1)  # (O, N, C)
        products = parted(polynomials, [irrep.dimension for irrep in self.targets])
        new = self.linear_products(dict(zip(self.targets, products, strict=True)))
        return {irrep: values + own[irrep] if irrep in own else values for irrep, values in new.items()}


class MACE(Potential):
    """The network of the module's docstring."""

    def __init__(self, section: MACESection, elements: Sequence[int]) -> None:
        num_channels, num_layers = section.num_channels, section.num_layers
        hidden = natural_irreps(section.l_max)
        has_vectors = VECTOR in hidden and num_layers > 1
        super().__init__(section, elements=elements, num_scalars=num_channels, num_vectors=num_channels if has_vectors else 0)
        self.embedding = ElementEmbedding(elements, num_channels, charge=section.charge_embedding, spin=section.spin_embedding)
        self.radial_basis = BesselBasis(num_radial=section.num_bessel, cutoff=section.cutoff)
        self.harmonics = SphericalHarmonics(section.max_ell)
        self.cutoff_power = section.cutoff_power
        self.layers = nn.ModuleList(
            Layer(
                section,
                hidden if number else [SCALAR],
                hidden if number < num_layers - 1 else [SCALAR],
                num_elements=len(elements),
                is_plain=number == 0 and section.first_interaction == "plain",
            )
            for number in range(num_layers)
        )
        widths = [(num_channels, 1)] * (num_layers - 1) + [(num_channels, section.readout_hidden, 1)]
        self.readouts = nn.ModuleList(RadialNetwork(width, gain=SILU_GAIN, distribution="normal") for width in widths)

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, the scalars of the last layer and the vectors before it."""
        pairs = pairs_of(graph.reverse_edge)
        distance = graph.edge_vectors.norm(dim=1)  # (E,)
        harmonics = self.harmonics(graph.edge_vectors / distance[:, None])
        radial = self._radial(mean_of_pair(distance, pairs))  # (Q, K)
        atoms = _atoms(self.embedding.column[graph.atomic_numbers], num_elements=len(self.elements))
        tables = EdgeTables(graph, pairs)
        seen, own = self._first(graph, atoms)
        outputs: list[Features] = []
        for layer in self._layers():
            if outputs:
                seen, own = layer.of_features(outputs[-1], atoms)
            outputs.append(layer(seen, own, radial, harmonics, atoms, tables))
        scalars = [features[SCALAR].squeeze(0).to(distance.dtype) for features in outputs]  # (N, C) each
        vectors = outputs[-2][VECTOR].transpose(0, 1).to(distance.dtype) if self.num_vectors else None
        return AtomicOutputs.of(self._energies(scalars), scalars[-1], vectors=vectors)

    def _first(self, graph: AtomicGraph, atoms: Atoms) -> tuple[Features, Features]:
        """What the first layer takes: from the features of elements, unless those of their atoms differ."""
        layer, factor = self._layers()[0], len(self.elements) ** -0.5
        if self.embedding.state is not None:
            return layer.of_features({SCALAR: factor * self.embedding(graph)[None]}, atoms)
        weight = self.embedding.weight  # (Z, C)
        elements = torch.arange(weight.shape[0], device=weight.device)
        tables = layer.of_features({SCALAR: factor * weight[None]}, _atoms(elements, num_elements=weight.shape[0]))
        one_hot = (atoms.columns[:, None] == elements).to(weight.dtype)  # (N, Z)
        seen, own = ({irrep: one_hot @ table for irrep, table in of_elements.items()} for of_elements in tables)
        return seen, own

    def _energies(self, scalars: Sequence[Tensor]) -> Tensor:
        """The sum of what is read out of each layer, (N,)."""
        parts = [without_autocast(*pair, dtype=pair[1].dtype) for pair in zip(self.readouts, scalars, strict=True)]
        return torch.stack(parts).sum(dim=0).squeeze(1)

    def _radial(self, distance: Tensor) -> Tensor:
        envelope = polynomial_cutoff(distance, self.cutoff, power=self.cutoff_power)[:, None]
        basis: Tensor = self.radial_basis(distance)
        return math.sqrt(2.0 / self.cutoff) * basis * envelope

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]
