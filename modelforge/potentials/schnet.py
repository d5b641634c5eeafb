"""SchNet: continuous-filter convolutions (Schuett et al., J. Chem. Phys. 148, 241722 (2018), arXiv:1706.08566).

    y_i = sum_j (W_in x_j) * w(d_ij),   w(d) = MLP(radial(d)) f_c(d),   x_i <- x_i + MLP(y_i)

The network and its readout follow SchNetPack, whose weights it reproduces. N atoms, P pairs, F features, C filters.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import ElementEmbedding, ShiftedSoftplus, dense, two_layers, without_autocast
from modelforge.nn.neighbours.neighbour_sums import sum_over_neighbours
from modelforge.nn.neighbours.pairs import Pairs, mean_of_pair, pairs_of
from modelforge.nn.radial import RadialBasisName, radial_basis
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, Length


class SchNetSection(PotentialFields):
    """SchNet: continuous-filter convolutions on distances; fast, and the least accurate on forces."""

    name: Literal["schnet"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    num_features: Count = 128
    """Features of an atom."""
    num_filters: Count | None = None
    """Channels of the continuous filters; as many as features where not given."""
    num_layers: Count = 3
    """Interaction blocks."""
    num_radial: Count = 20
    """Radial basis functions."""
    radial_basis: RadialBasisName = "gaussian"
    """Functions in which distances are expanded."""

    def build(self, elements: Sequence[int]) -> "SchNet":
        """A network with random weights for these elements."""
        return SchNet(self, elements)


class Interaction(nn.Module):
    """A continuous-filter convolution and an atom-wise network."""

    def __init__(self, *, num_features: int, num_filters: int, num_radial: int) -> None:
        super().__init__()
        self.filter_network = two_layers(num_radial, num_filters, num_filters, ShiftedSoftplus)
        self.features_in = dense(num_features, num_filters, bias=False)
        self.features_out = two_layers(num_filters, num_features, num_features, ShiftedSoftplus)

    def forward(self, features: Tensor, radial: Tensor, envelope: Tensor, pairs: Pairs, graph: AtomicGraph) -> Tensor:
        """Change of the features, (N, F)."""
        filters = self.filter_network(radial) * envelope  # (P, C)
        incoming = self.features_in(features).to(features.dtype)  # (N, C), in half precision no longer: sums follow
        messages = sum_over_neighbours(filters[:, None], incoming[:, None], pairs, graph)[:, 0]  # (N, C)
        update: Tensor = self.features_out(messages)
        return update


class SchNet(Potential):
    """The network of the module's docstring."""

    def __init__(self, section: SchNetSection, elements: Sequence[int]) -> None:
        num_features = section.num_features
        super().__init__(section, elements=elements, num_scalars=num_features)
        self.embedding = ElementEmbedding(elements, num_features, charge=section.charge_embedding, spin=section.spin_embedding)
        self.radial_basis = radial_basis(section.radial_basis, num_radial=section.num_radial, cutoff=section.cutoff)
        self.interactions = nn.ModuleList(
            Interaction(
                num_features=num_features,
                num_filters=section.num_filters or num_features,
                num_radial=section.num_radial,
            )
            for _ in range(section.num_layers)
        )
        self.readout = two_layers(num_features, max(num_features // 2, 1), 1, nn.SiLU)

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies and features."""
        pairs = pairs_of(graph.reverse_edge)
        distance = mean_of_pair(graph.edge_vectors.norm(dim=1), pairs)  # (P,)
        radial = self.radial_basis(distance)  # (P, K)
        envelope = cosine_cutoff(distance, self.cutoff)[:, None]  # (P, 1)
        features = self.embedding(graph)  # (N, F)
        for interaction in self.interactions:
            features = features + interaction(features, radial, envelope, pairs, graph)
        return AtomicOutputs.of(without_autocast(self.readout, features, dtype=distance.dtype)[:, 0], features)
