"""TensorNet: Cartesian tensor representations (Simeon, De Fabritiis, NeurIPS 2023, arXiv:2306.06482).

Each atom and feature has a 3x3 matrix X = I + A + S: a multiple of 1, an antisymmetric, a traceless symmetric one.

    embedding:    X_i = sum_j Z_ij (w_1 + w_2 [u_ij] + w_3 (u_ij u_ij^T - 1/3));  parts mixed, and scaled by an MLP of |X|^2
    interaction:  X <- X / (|X|^2 + 1);  Y = mix(X);  M_i = sum_j (f_1 I_j + f_2 A_j + f_3 S_j) of the parts of Y
                  P = M Y + Y M;  dX = mix(P / (|P|^2 + 1));  X <- X + dX + dX dX
    readout:      MLP of |I|^2, |A|^2, |S|^2

Sums run over the neighbours and the atom itself at distance 0; w and f are networks of the distance times f_c. It reproduces
TorchMD-Net's weights. N atoms, E edges, P pairs, F features, K radial functions, C the 9 components of a matrix.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_atoms, at_receivers, at_senders, sum_over_edges
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import ElementEmbedding, ShiftedSoftplus, dense, without_autocast
from modelforge.nn.matrix_products import anticommutator, square
from modelforge.nn.neighbours.neighbour_sums import sum_over_neighbours
from modelforge.nn.neighbours.pairs import Pairs, at_both_edges, mean_of_pair, pairs_of
from modelforge.nn.radial import ExpNormalBasis
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, Length

ACTIVATIONS = {"silu": nn.SiLU, "tanh": nn.Tanh, "shifted_softplus": ShiftedSoftplus}
PARTS = (1, 3, 5)  # components of I, A and S; those of A are a vector
CHARGE_FACTOR = 0.1  # of TorchMD-Net
NUM_OF_FEATURES = 3  # first layers of the readout, which give features; the others give the energy
# Orthogonal matrices that span the parts; whole numbers, exact in any precision, until `forward` normalizes them.
COMPONENTS = (
    (1, 0, 0, 0, 1, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, -1, 0, 1, 0),
    (0, 0, 1, 0, 0, 0, -1, 0, 0),
    (0, -1, 0, 1, 0, 0, 0, 0, 0),
    (0, 1, 0, 1, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 1, 0, 1, 0),
    (0, 0, 1, 0, 0, 0, 1, 0, 0),
    (1, 0, 0, 0, -1, 0, 0, 0, 0),
    (-1, 0, 0, 0, -1, 0, 0, 0, 2),
)


class TensorNetSection(PotentialFields):
    """TensorNet: 3x3 matrices as features, which act on each other by matrix products; accurate with few layers."""

    name: Literal["tensornet"]
    cutoff: Length = 4.5
    """Distance beyond which atoms do not see each other."""
    num_features: Count = 128
    """Matrices of an atom."""
    num_layers: Count = 2
    """Interaction blocks."""
    num_radial: Count = 32
    """Radial basis functions (exponentials of exponentials, denser at short distances)."""
    activation: Literal["silu", "tanh", "shifted_softplus"] = "silu"
    """Non-linear function of all layers."""

    charge_in_products: bool = False
    """Whether products of matrices are multiplied by 1 + 0.1 q, with the total charge q, as in TorchMD-Net."""

    @property
    def sees_charge(self) -> bool:
        """Whether the network sees the total charge."""
        return self.charge_embedding or self.charge_in_products

    def build(self, elements: Sequence[int]) -> "TensorNet":
        """A network with random weights for these elements."""
        return TensorNet(self, elements)


class Radial(NamedTuple):
    """Radial functions of the pairs, and of an atom with itself."""

    pairs: Pairs
    of_pairs: Tensor  # (P, K)
    envelope: Tensor  # (P, 1)
    at_zero: Tensor  # (1, K)

    def filters(self, network: nn.Module) -> Tensor:
        """A network of the distance times the cutoff function, for the three parts, (P, 3, F)."""
        filters: Tensor = network(self.of_pairs) * self.envelope
        return torch.unflatten(filters, 1, (3, -1))

    def own_filters(self, network: nn.Module) -> Tensor:
        """The same at distance 0, (1, 3, F)."""
        filters: Tensor = network(self.at_zero).to(self.at_zero.dtype)
        return torch.unflatten(filters, 1, (3, -1))


class Mixing(nn.Module):
    """A linear layer over the features of each part."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(num_features, num_features, bias=False) for _ in PARTS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, F) -> (N, C, F), in half precision no longer: products and sums follow."""
        mixed = [layer(part) for layer, part in zip(self.layers, parts_of(x), strict=True)]
        return torch.cat(mixed, dim=1).to(x.dtype)


class Embedding(nn.Module):
    """First matrices of an atom, from its own element and the elements and directions of its neighbours."""

    def __init__(self, section: TensorNetSection, elements: Sequence[int]) -> None:
        super().__init__()
        num_features, activation = section.num_features, ACTIVATIONS[section.activation]
        self.elements = ElementEmbedding(elements, num_features, charge=section.charge_embedding, spin=section.spin_embedding)
        self.receivers = nn.Linear(num_features, num_features)
        self.senders = nn.Linear(num_features, num_features, bias=False)
        self.filters = nn.Linear(section.num_radial, 3 * num_features)
        self.norm = nn.LayerNorm(num_features)
        self.scales = network(num_features, 2 * num_features, 3 * num_features, activation=activation)
        self.mixing = Mixing(num_features)

    def forward(self, radial: Radial, directions: Tensor, graph: AtomicGraph) -> Tensor:
        """X, (N, C, F)."""
        features = self.elements(graph)  # (N, F)
        # Z_ij is linear in the features of both atoms: a layer for each, instead of one for each edge.
        receivers, senders = (layer(features).to(features.dtype) for layer in (self.receivers, self.senders))
        species = (at_receivers(receivers, graph) + at_senders(senders, graph))[:, None]  # (E, 1, F)
        weights = torch.split(species * at_both_edges(radial.filters(self.filters), radial.pairs), 1, dim=1)  # 3 x (E, 1, F)
        parts = zip(weights, parts_of(directions), strict=True)
        x = torch.cat([sum_over_edges(weight * direction, graph) for weight, direction in parts], dim=1)
        own = math.sqrt(3.0) * (receivers + senders)[:, None] * radial.own_filters(self.filters)[:, :1]  # (N, 1, F)
        x = x + functional.pad(own, (0, 0, 0, sum(PARTS[1:])))
        scales = self.scales(self.norm(squared_norm(x)[:, 0])).to(x.dtype)  # (N, 3F)
        mixed: Tensor = self.mixing(x)
        return mixed * for_components(torch.unflatten(scales, 1, (3, -1)))


class Interaction(nn.Module):
    """Messages, multiplied with the matrices of the atom that receives them."""

    def __init__(self, section: TensorNetSection) -> None:
        super().__init__()
        num_features, activation = section.num_features, ACTIVATIONS[section.activation]
        widths = (section.num_radial, num_features, 2 * num_features, 3 * num_features)
        self.filters = network(*widths, activation=activation)
        self.mixing_before = Mixing(num_features)
        self.mixing_after = Mixing(num_features)

    def forward(self, x: Tensor, radial: Radial, components: Tensor, graph: AtomicGraph, *, strength: Tensor | None) -> Tensor:
        """New X, (N, C, F); `strength` (N, 1, 1) multiplies the products, None stands for ones."""
        x = normalized(x)
        y = self.mixing_before(x)
        own = y * for_components(radial.own_filters(self.filters))
        messages = own + sum_over_neighbours(radial.filters(self.filters), y, radial.pairs, graph, parts=PARTS)
        product = components_of(anticommutator(matrices(messages, components), matrices(y, components)), components)
        change: Tensor = self.mixing_after(normalized(product if strength is None else strength * product))
        squared = components_of(square(matrices(change, components)), components)
        return x + change + (squared if strength is None else strength * squared)


class TensorNet(Potential):
    """The network of the module's docstring."""

    components: Tensor

    def __init__(self, section: TensorNetSection, elements: Sequence[int]) -> None:
        num_features, activation = section.num_features, ACTIVATIONS[section.activation]
        super().__init__(section, elements=elements, num_scalars=num_features, num_vectors=num_features)
        half = max(num_features // 2, 1)
        self.sees_charge = section.charge_in_products
        self.radial_basis = ExpNormalBasis(num_radial=section.num_radial, cutoff=section.cutoff)
        self.embedding = Embedding(section, elements)
        self.interactions = nn.ModuleList(Interaction(section) for _ in range(section.num_layers))
        last = (
            nn.Linear(3 * num_features, num_features),
            activation(),
            dense(num_features, half),
            activation(),
            dense(half, 1),
        )
        self.readout = nn.Sequential(nn.LayerNorm(3 * num_features), *last)
        components = torch.tensor(COMPONENTS, dtype=torch.get_default_dtype())
        self.register_buffer("components", components, persistent=False)

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies and features."""
        components = self.components / self.components.norm(dim=1, keepdim=True)  # (C, 9)
        distance = graph.edge_vectors.norm(dim=1)  # (E,)
        radial = self._radial(distance, graph)
        directions = direction_components(graph.edge_vectors / distance[:, None], components)
        x = self.embedding(radial, directions, graph)
        strength = 1.0 + CHARGE_FACTOR * at_atoms(graph.total_charge, graph)[:, None, None] if self.sees_charge else None
        for interaction in self.interactions:
            x = interaction(x, radial, components, graph, strength=strength)
        invariants = torch.cat([part.square().sum(dim=1) for part in parts_of(x)], dim=1)  # (N, 3F)
        scalars = without_autocast(self.readout[:NUM_OF_FEATURES], invariants, dtype=distance.dtype)  # (N, F)
        energies = without_autocast(self.readout[NUM_OF_FEATURES:], scalars, dtype=distance.dtype)[:, 0]
        return AtomicOutputs.of(energies, scalars, vectors=parts_of(x)[1])

    def _radial(self, distance: Tensor, graph: AtomicGraph) -> Radial:
        pairs = pairs_of(graph.reverse_edge)
        of_pairs = mean_of_pair(distance, pairs)  # (P,)
        envelope = cosine_cutoff(of_pairs, self.cutoff)[:, None]
        return Radial(pairs, self.radial_basis(of_pairs) * envelope, envelope, self.radial_basis(distance.new_zeros(1)))


def network(*widths: int, activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers, an activation after each."""
    layers = [(nn.Linear(num_in, num_out), activation()) for num_in, num_out in pairwise(widths)]
    return nn.Sequential(*(module for layer in layers for module in layer))


# Matrices as components, (N, C, F), and as they are, (N, 3, 3, F).


def direction_components(unit: Tensor, components: Tensor) -> Tensor:
    """Components of 1 + [u] + u u^T - 1/3 for unit vectors, (E, 3) -> (E, C, 1)."""
    scalar = torch.full_like(unit[:, :1], math.sqrt(3.0))
    outer = (unit[:, :, None] * unit[:, None]).flatten(1)  # (E, 9)
    with torch.autocast(unit.device.type, enabled=False):
        symmetric = outer @ components[-PARTS[2] :].T
    return torch.cat([scalar, math.sqrt(2.0) * unit, symmetric], dim=1)[:, :, None]


def matrices(x: Tensor, components: Tensor) -> Tensor:
    """(N, C, F) -> (N, 3, 3, F)."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.unflatten(components.T @ x, 1, (3, 3))


def components_of(full: Tensor, components: Tensor) -> Tensor:
    """(N, 3, 3, F) -> (N, C, F)."""
    with torch.autocast(full.device.type, enabled=False):
        return components @ full.flatten(1, 2)


def parts_of(x: Tensor) -> tuple[Tensor, ...]:
    """(N, C, F) -> (N, 1, F), (N, 3, F), (N, 5, F)."""
    return torch.split(x, list(PARTS), dim=1)


def for_components(per_part: Tensor) -> Tensor:
    """What belongs to a part, for each of its components, (N, 3, F) -> (N, C, F)."""
    each = zip(torch.split(per_part, 1, dim=1), PARTS, strict=True)
    return torch.cat([part.expand(-1, num, -1) for part, num in each], dim=1)


def squared_norm(x: Tensor) -> Tensor:
    """Sum of the squares of all nine entries, (N, C, F) -> (N, 1, F)."""
    return x.square().sum(dim=1, keepdim=True)


def normalized(x: Tensor) -> Tensor:
    """X / (|X|^2 + 1)."""
    return x / (squared_norm(x) + 1.0)
