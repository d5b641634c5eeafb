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
from modelforge.atoms.sums import at_senders, sum_over_edges
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import ElementEmbedding, dense, two_layers, without_autocast
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
        self.num_features = num_features
        self.context = two_layers(num_features, num_features, 3 * num_features, nn.SiLU)

    def forward(
        self, scalars: Tensor, vectors: Tensor | None, filters: Tensor, directions: Tensor, graph: AtomicGraph
    ) -> tuple[Tensor, Tensor]:
        """Sums over the neighbours for scalars (N, F) and vectors (N, 3, F); `vectors` None stands for zeros."""
        parts = 2 if vectors is None else 3  # the third part multiplies the vectors: nothing while they are zero
        width = parts * self.num_features
        context = self.context(scalars)[:, :width]
        weights = (filters[:, :width] * at_senders(context, graph)).chunk(parts, dim=1)  # parts x (E, F)
        to_vectors = weights[1][:, None] * directions  # (E, 3, F)
        if vectors is not None:
            to_vectors = to_vectors + weights[2][:, None] * at_senders(vectors, graph)
        return sum_over_edges(weights[0], graph), sum_over_edges(to_vectors, graph)


class Mixing(nn.Module):
    """Scalars and vectors of an atom act on each other."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.vector_channels = dense(num_features, 2 * num_features, bias=False)
        self.context = two_layers(2 * num_features, num_features, 3 * num_features, nn.SiLU)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of scalars (N, F) and vectors (N, 3, F)."""
        # Never in half precision, where 1e-8 may be zero, and with it the length of vectors that vanish by symmetry.
        left, right = self.vector_channels(vectors).to(vectors.dtype).chunk(2, dim=-1)  # V, U: (N, 3, F)
        length = (left.square().sum(dim=1) + NORM_EPSILON).sqrt()  # (N, F)
        to_scalars, to_vectors, product = self.context(torch.cat([scalars, length], dim=1)).chunk(3, dim=1)
        return to_scalars + product * (left * right).sum(dim=1), to_vectors[:, None] * right


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
        distance = graph.edge_vectors.norm(dim=1)  # (E,)
        directions = (graph.edge_vectors / distance[:, None])[:, :, None]  # (E, 3, 1)
        scalars = self.embedding(graph)  # (N, F)
        vectors: Tensor | None = None
        for message, mixing, filters in zip(self.messages, self.mixings, self._filters(distance), strict=True):
            to_scalars, to_vectors = message(scalars, vectors, filters, directions, graph)
            scalars, vectors = scalars + to_scalars, to_vectors if vectors is None else vectors + to_vectors
            to_scalars, to_vectors = mixing(scalars, vectors)
            scalars, vectors = scalars + to_scalars, vectors + to_vectors
        energies = without_autocast(self.readout, scalars, dtype=distance.dtype)[:, 0]
        return AtomicOutputs.of(energies, scalars, vectors=vectors)

    def _filters(self, distance: Tensor) -> Sequence[Tensor]:
        """Filters of each layer, T x (E, 3F)."""
        filters = self.filters(self.radial_basis(distance)) * cosine_cutoff(distance, self.cutoff)[:, None]
        return [filters] * len(self.messages) if self.shared_filters else filters.chunk(len(self.messages), dim=1)
