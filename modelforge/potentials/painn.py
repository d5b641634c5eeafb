"""PaiNN: polarizable atom interaction network (Schuett, Unke, Gastegger, ICML 2021, arXiv:2102.03150).

    message:  c_j = MLP(q_j);  (a, b, e) = w(d_ij) * c_j;  q_i <- q_i + sum_j a;  mu_i <- mu_i + sum_j (b u_ij + e mu_j)
    mixing:   (V, U) = W mu;  (a, b, e) = MLP([q, |V|]);   q <- q + a + e <V, U>;  mu <- mu + b U

with scalars q (N, F), vectors mu (N, 3, F) that start at zero, unit vectors u_ij, filters w(d) = (W radial(d) + b) f_c(d).
The network and its readout follow SchNetPack, whose weights it reproduces. N atoms, E edges, F features, T layers.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import ElementEmbedding, dense, two_layers, without_autocast
from modelforge.nn.neighbours.directed_sums import directed_sum
from modelforge.nn.neighbours.filtered_sums import filtered_sum
from modelforge.nn.neighbours.neighbourhood import Neighbourhood, neighbourhood_of
from modelforge.nn.neighbours.pairs import mean_of_pair, pairs_of
from modelforge.nn.radial import RadialBasisName, radial_basis
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, Length

NORM_EPSILON = 1e-8  # under the root of |V|: its second derivative at V = 0 must be finite


class PaiNNSection(PotentialFields):
    """PaiNN: scalar and vector features with equivariant messages; the fast choice for accurate forces."""

    name: Literal["painn"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    num_features: Count = 128
    """Scalar features of an atom, and as many vector features."""
    num_layers: Count = 3
    """Message and mixing blocks."""
    num_radial: Count = 20
    """Radial basis functions."""
    radial_basis: RadialBasisName = "gaussian"
    """Functions in which distances are expanded."""
    shared_filters: bool = False
    """One set of radial filters for all layers, instead of one for each."""

    def build(self, elements: Sequence[int]) -> "PaiNN":
        """A network with random weights for these elements."""
        return PaiNN(self, elements)


class Message(nn.Module):
    """What atoms receive from their neighbours."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.context = two_layers(num_features, num_features, 3 * num_features, nn.SiLU)

    def forward(
        self, scalars: Tensor, vectors: Tensor | None, filters: Sequence[Tensor], directions: Tensor, near: Neighbourhood
    ) -> tuple[Tensor, Tensor]:
        """Sums over the neighbours for scalars (N, F) and vectors (3, N, F); `vectors` None stands for zeros."""
        context = self.context(scalars).to(scalars.dtype).view(-1, 3, scalars.shape[1]).transpose(0, 1).contiguous()
        of_scalars, of_directions, of_vectors = context.unbind()  # 3 x (N, F)
        to_scalars = filtered_sum(filters[0], of_scalars[None], near).squeeze(0)
        to_vectors = directed_sum(directions, filters[1], of_directions, near)
        if vectors is not None:
            to_vectors = to_vectors + filtered_sum(filters[2], of_vectors * vectors, near)
        return to_scalars, to_vectors


class Mixing(nn.Module):
    """Scalars and vectors of an atom act on each other."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.vector_channels = dense(num_features, 2 * num_features, bias=False)
        self.context = two_layers(2 * num_features, num_features, 3 * num_features, nn.SiLU)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of scalars (N, F) and vectors (3, N, F)."""
        # Never in half precision, where 1e-8 may be zero, and with it the length of vectors that vanish by symmetry.
        left, right = self.vector_channels(vectors).to(vectors.dtype).chunk(2, dim=-1)  # V, U: (3, N, F)
        length = (left.square().sum(dim=0) + NORM_EPSILON).sqrt()  # (N, F)
        to_scalars, to_vectors, product = self.context(torch.cat([scalars, length], dim=1)).chunk(3, dim=1)
        return to_scalars + product * (left * right).sum(dim=0), to_vectors * right


class PaiNN(Potential):
    """The network of the module's docstring."""

    def __init__(self, section: PaiNNSection, elements: Sequence[int]) -> None:
        num_features, num_layers = section.num_features, section.num_layers
        super().__init__(section, elements=elements, num_scalars=num_features, num_vectors=num_features)
        num_filters = 1 if section.shared_filters else num_layers
        self.shared_filters = section.shared_filters
        self.embedding = ElementEmbedding(elements, num_features, charge=section.charge_embedding, spin=section.spin_embedding)
        self.radial_basis = radial_basis(section.radial_basis, num_radial=section.num_radial, cutoff=section.cutoff)
        self.filters = dense(section.num_radial, num_filters * 3 * num_features)
        self.messages = nn.ModuleList(Message(num_features) for _ in range(num_layers))
        self.mixings = nn.ModuleList(Mixing(num_features) for _ in range(num_layers))
        self.readout = two_layers(num_features, max(num_features // 2, 1), 1, nn.SiLU)

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies and features."""
        pairs = pairs_of(graph.reverse_edge)
        near = neighbourhood_of(graph, pairs)
        vectors_of_pairs = mean_of_pair(near.sign * graph.edge_vectors, pairs)  # (P, 3)
        distance = vectors_of_pairs.norm(dim=1)  # (P,)
        directions = vectors_of_pairs / distance[:, None]  # (P, 3)
        scalars = self.embedding(graph)  # (N, F)
        vectors: Tensor | None = None
        for message, mixing, filters in zip(self.messages, self.mixings, self._filters(distance), strict=True):
            to_scalars, to_vectors = message(scalars, vectors, filters, directions, near)
            scalars, vectors = scalars + to_scalars, to_vectors if vectors is None else vectors + to_vectors
            to_scalars, to_vectors = mixing(scalars, vectors)
            scalars, vectors = scalars + to_scalars, vectors + to_vectors
        energies = without_autocast(self.readout, scalars, dtype=distance.dtype)[:, 0]
        assert vectors is not None
        return AtomicOutputs.of(energies, scalars, vectors=vectors.transpose(0, 1))

    def _filters(self, distance: Tensor) -> Sequence[Sequence[Tensor]]:
        """Filters of each layer for scalars, directions and vectors, T x 3 x (P, F)."""
        envelope = cosine_cutoff(distance, self.cutoff)[:, None]  # (P, 1)
        radial = torch.cat([self.radial_basis(distance) * envelope, envelope], dim=1)  # (P, K + 1), the last for the biases
        weights = torch.cat([self.filters.weight, self.filters.bias[:, None]], dim=1)  # (3TF, K + 1)
        # Transposed in memory, by which the products for the gradients of the weights take half the time.
        parts = weights.view(-1, self.num_scalars, weights.shape[1]).transpose(1, 2).contiguous()  # (3T, K + 1, F)
        filters = [torch.mm(radial, part).to(distance.dtype) for part in parts.unbind()]  # 3T x (P, F)
        layers = [filters[first : first + 3] for first in range(0, len(filters), 3)]
        return layers * len(self.messages) if self.shared_filters else layers
