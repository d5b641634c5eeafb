"""SAKE: spatial attention kinetic network (Y. Wang, J. D. Chodera, arXiv:2301.08893).

    edges:     e = MLP([c, radial(d) * (W c + b), d]),  c = [h_j, h_i],  d = sqrt(|r_ij|^2 + 1e-5)
    attention: a_j = f_j^2 exp(s_j)/sum_k f_k exp(s_k),  s = celu(W e + b) for each head,  m = a (x) e
    spatial:   v = 1/(1 + sum_j f_j) sum_j tanh(W m) r_ij/d,   h <- h + silu(MLP([h, sum_j m, silu(MLP(|v|^2))]))
    kinetic:   velocity <- W v + 2 sigmoid(MLP(h)) velocity,   r_ij <- r_ij + velocity_j - velocity_i   (optional)

The authors' code sees all pairs of a molecule; it is reproduced where the cutoff f, a cosine of the edge's length, is 1.
N atoms, E edges, F features, H heads, C = F H coefficients, K radial functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_receivers, at_senders, sum_over_edges
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import ElementEmbedding, dense, two_layers, without_autocast
from modelforge.nn.radial import ExpNormalBasis
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, Length

EPSILON = 1e-5  # of the authors' code: under the root of the distance, and beside it where vectors are divided by it


class SAKESection(PotentialFields):
    """SAKE: attention over the neighbours of an atom and over directions to them, without tensors beyond vectors."""

    name: Literal["sake"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    num_features: Count = 64
    """Features of an atom, and as many of an edge."""
    num_layers: Count = 4
    """Interaction blocks."""
    num_heads: Count = 4
    """Attentions over the neighbours; work and memory grow with features times heads."""
    num_radial: Count = 50
    """Radial basis functions."""
    radial_range: Length | None = None
    """Distance over which the radial functions are spread; the cutoff where not given."""
    update_positions: bool = False
    """Move the atoms from block to block by learned velocities; slower."""

    def build(self, elements: Sequence[int]) -> "SAKE":
        """A network with random weights for these elements."""
        return SAKE(self, elements)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Where the neighbours of each atom are, as far as the blocks have moved them."""

    vectors: Tensor  # (E, 3) angstrom
    distance: Tensor  # (E, 1) angstrom, never zero
    envelope: Tensor  # (E, 1) of the edges before any was moved
    num_atoms: Tensor  # (N, 1) neighbours weighted by their envelopes, and the atom itself


class EdgeFeatures(nn.Module):
    """Features of an edge from those of its atoms and its length."""

    def __init__(self, *, num_features: int, num_radial: int, radial_range: float) -> None:
        super().__init__()
        self.num_radial = num_radial
        self.radial_basis = ExpNormalBasis(num_radial=num_radial, cutoff=radial_range)
        # A layer on [h_j, h_i] is the sum of two on the atoms, of which there are fewer than edges.
        self.of_sender = dense(num_features, num_radial + num_features)
        self.of_receiver = dense(num_features, num_radial + num_features, bias=False)
        self.of_distance = dense(num_radial + 1, num_features, bias=False)
        self.output = dense(num_features, num_features)

    def forward(self, features: Tensor, surroundings: Surroundings, graph: AtomicGraph) -> Tensor:
        """(E, F)."""
        distance = surroundings.distance
        of_atoms = at_senders(self.of_sender(features), graph) + at_receivers(self.of_receiver(features), graph)
        gate, of_atoms = of_atoms.tensor_split((self.num_radial,), dim=1)  # (E, K), (E, F)
        of_distance = torch.cat([self.radial_basis(distance[:, 0]) * gate, distance], dim=1)  # (E, K + 1)
        edges: Tensor = self.output(functional.silu(of_atoms + self.of_distance(of_distance)))
        return edges


class Velocity(nn.Module):
    """Learned velocities of atoms, in angstrom a block."""

    def __init__(self, *, num_features: int, num_coefficients: int, is_first: bool) -> None:
        super().__init__()
        self.mixing = dense(num_coefficients, 1, bias=False)
        self.is_first = is_first
        if not is_first:
            self.gate = nn.Sequential(dense(num_features, num_features), nn.SiLU(), dense(num_features, 1, bias=False))

    def forward(self, features: Tensor, mean: Tensor, velocity: Tensor) -> Tensor:
        """From features (N, F), mean combinations (N, 3, C) and the velocity before, (N, 3)."""
        push = without_autocast(self.mixing, mean, dtype=mean.dtype)[:, :, 0]  # (N, 3)
        return push if self.is_first else push + 2.0 * torch.sigmoid(self.gate(features)) * velocity


class Interaction(nn.Module):
    """What atoms learn from their neighbours by attention, and from the directions to them."""

    def __init__(self, section: SAKESection) -> None:
        super().__init__()
        num_features, num_coefficients = section.num_features, section.num_features * section.num_heads
        self.edge_features = EdgeFeatures(
            num_features=num_features,
            num_radial=section.num_radial,
            radial_range=section.radial_range or section.cutoff,
        )
        self.logits = dense(num_features, section.num_heads)
        self.mixing = dense(num_coefficients, num_coefficients, bias=False)
        self.of_norms = two_layers(num_coefficients, num_features, num_features, nn.SiLU)
        self.update = two_layers(2 * num_features + num_coefficients, num_features, num_features, nn.SiLU)

    def forward(self, features: Tensor, surroundings: Surroundings, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
        """Change of the features (N, F), and mean combinations of directions, (N, 3, C)."""
        edges = self.edge_features(features, surroundings, graph)  # (E, F)
        heads = attention(self.logits(edges).to(features.dtype), surroundings.envelope, graph)  # (E, H)
        messages = (heads[:, :, None] * edges[:, None, :]).flatten(1)  # (E, C), head by head
        directions = surroundings.vectors / (surroundings.distance + EPSILON)  # (E, 3)
        coefficients = torch.tanh(self.mixing(messages))  # (E, C)
        total = sum_over_edges(directions[:, :, None] * coefficients[:, None, :], graph)  # (N, 3, C)
        mean = total / surroundings.num_atoms[:, :, None]
        spatial = functional.silu(self.of_norms(mean.square().sum(dim=1)))  # (N, F)
        change = self.update(torch.cat([features, sum_over_edges(messages, graph), spatial], dim=1))
        return functional.silu(change), mean


class SAKE(Potential):
    """The network of the module's docstring."""

    def __init__(self, section: SAKESection, elements: Sequence[int]) -> None:
        num_features, num_layers = section.num_features, section.num_layers
        super().__init__(section, elements=elements, num_scalars=num_features)
        self.embedding = ElementEmbedding(elements, num_features, charge=section.charge_embedding, spin=section.spin_embedding)
        self.interactions = nn.ModuleList(Interaction(section) for _ in range(num_layers))
        num_moves = num_layers - 1 if section.update_positions else 0  # nothing sees where the last block would move atoms
        self.velocities = nn.ModuleList(
            Velocity(num_features=num_features, num_coefficients=num_features * section.num_heads, is_first=t == 0)
            for t in range(num_moves)
        )
        self.readout = two_layers(num_features, num_features, 1, nn.SiLU)

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies and features."""
        surroundings = surroundings_of(graph, self.cutoff)
        features = self.embedding(graph)  # (N, F)
        velocity = surroundings.vectors.new_zeros(graph.num_atoms, 3)
        for place, interaction in enumerate(self.interactions):
            change, mean = interaction(features, surroundings, graph)
            features = features + change
            if place < len(self.velocities):
                velocity = self.velocities[place](features, mean, velocity)
                surroundings = moved(surroundings, velocity, graph)
        dtype = surroundings.distance.dtype
        return AtomicOutputs.of(without_autocast(self.readout, features, dtype=dtype)[:, 0], features)


def surroundings_of(graph: AtomicGraph, cutoff: float) -> Surroundings:
    """The neighbours where they are."""
    envelope = cosine_cutoff(graph.edge_vectors.norm(dim=1), cutoff)[:, None]
    return Surroundings(graph.edge_vectors, softened(graph.edge_vectors), envelope, 1.0 + sum_over_edges(envelope, graph))


def moved(surroundings: Surroundings, velocity: Tensor, graph: AtomicGraph) -> Surroundings:
    """The neighbours after each atom has moved by its velocity (N, 3)."""
    vectors = surroundings.vectors + at_senders(velocity, graph) - at_receivers(velocity, graph)
    return Surroundings(vectors, softened(vectors), surroundings.envelope, surroundings.num_atoms)


def softened(vectors: Tensor) -> Tensor:
    """Lengths that can be differentiated where atoms are moved to one place, (E, 3) -> (E, 1)."""
    return (vectors.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


def attention(logits: Tensor, envelope: Tensor, graph: AtomicGraph) -> Tensor:
    """Softmax of celu(logits) (E, H) over the neighbours of each atom, weighted by the envelope (E, 1), times the envelope.

    The last factor is for neighbours that are alone: their softmax is 1 up to the cutoff.
    """
    # Not below -2, and however large, nothing of a neighbour at the cutoff may come through.
    logits = functional.celu(logits, alpha=2.0) * (envelope > 0)
    weights = (logits - at_receivers(_largest(logits.detach(), graph), graph)).exp() * envelope
    total = sum_over_edges(weights, graph)  # (N, H)
    # Zero without neighbours, and where all are at the cutoff to the last digit: the weights are then zero as well.
    return weights * envelope / at_receivers(torch.where(total > 0, total, 1.0), graph)


def _largest(logits: Tensor, graph: AtomicGraph) -> Tensor:
    """The largest logit of each atom's edges, or 0 where that is larger, (E, H) -> (N, H)."""
    receivers = graph.receivers[:, None].expand_as(logits)
    return logits.new_zeros(graph.num_atoms, logits.shape[1]).scatter_reduce(0, receivers, logits, "amax")
