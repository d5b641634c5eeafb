"""PhysNet (Unke, Meuwly, J. Chem. Theory Comput. 15, 3678, 2019), with s the shifted softplus.

    residual:     x <- x + W s(W s(x) + b) + b
    interaction:  v = s(W s(x_i) + b) + sum_j (G g(d_ij)) * s(W s(x_j) + b);  v through residuals;  x <- u * x + W s(v) + b
    module:       interaction, then residuals of x;  output: residuals, then W s(.), gives energy and charge
    atom:         E_i = s_Z sum_modules E + c_Z,  q_i likewise, less an equal share of what is too much
    penalty:      lambda mean_i sum_(m > 1) (E^m)^2 / ((E^m)^2 + (E^(m-1))^2) in the loss: later modules say less

with g_k = phi(d) exp(-beta (exp(-d) - mu_k)^2), distances in angstrom and the polynomial phi that falls to 0 at the cutoff. The
paper's Coulomb and dispersion energies are [potential.coulomb] name = "damped" and [potential.dispersion]. N atoms, E edges, P
pairs, F features, K radial functions, O outputs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_senders, sum_over_edges
from modelforge.nn.cutoffs import polynomial_cutoff
from modelforge.nn.layers import ElementEmbedding, ShiftedSoftplus, dense, without_autocast
from modelforge.nn.neighbours.pairs import Pairs, at_both_edges, mean_of_pair, pairs_of
from modelforge.nn.radial import ExpNormalBasis
from modelforge.potentials.heads import conserved
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, CountOrZero, Length, NonNegative

FIRST_CHARGES = 0.1  # scale of the charges before training, elementary charges
SMALLEST_SQUARE = 1e-7  # added where squares are divided by, so that outputs that are zero at first have a slope


class PhysNetSection(PotentialFields):
    """PhysNet: residual blocks and messages of distances; with partial charges and a Coulomb energy it sees far."""

    name: Literal["physnet"]
    cutoff: Length = 10.0
    """Distance beyond which atoms do not see each other."""
    num_features: Count = 128
    """Features of an atom."""
    num_layers: Count = 5
    """Modules, each an interaction with residual blocks and an output."""
    num_radial: Count = 64
    """Radial basis functions (exponentials of exponentials, denser at short distances)."""
    num_interaction_residuals: CountOrZero = 3
    """Residual blocks of what an atom receives."""
    num_atomic_residuals: CountOrZero = 2
    """Residual blocks of an atom after each interaction."""
    num_output_residuals: CountOrZero = 1
    """Residual blocks of each output."""
    hierarchy_weight: NonNegative = 0.01
    """Weight in the loss of what modules give to the energy beside the module before them; 0 leaves it out."""

    def build(self, elements: Sequence[int]) -> "PhysNet":
        """A network with random weights for these elements."""
        return PhysNet(self, elements)


class Residual(nn.Module):
    """An atom-wise network of two layers beside the identity."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        layers = (dense(num_features, num_features) for _ in range(2))
        self.layers = nn.Sequential(*(module for layer in layers for module in (ShiftedSoftplus(), layer)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        change: Tensor = self.layers(x)
        return x + change


def residuals(num: int, num_features: int) -> nn.Sequential:
    """Residual blocks, one after the other."""
    return nn.Sequential(*(Residual(num_features) for _ in range(num)))


class Interaction(nn.Module):
    """What an atom receives from its neighbours."""

    def __init__(self, section: PhysNetSection) -> None:
        super().__init__()
        num_features = section.num_features
        self.of_receiver = nn.Sequential(dense(num_features, num_features), ShiftedSoftplus())
        self.of_sender = nn.Sequential(dense(num_features, num_features), ShiftedSoftplus())
        self.residuals = residuals(section.num_interaction_residuals, num_features)
        self.output = nn.Sequential(ShiftedSoftplus(), dense(num_features, num_features))
        self.gate = nn.Parameter(torch.ones(num_features))
        self.activation = ShiftedSoftplus()

    def forward(self, x: Tensor, filters: Tensor, pairs: Pairs, graph: AtomicGraph) -> Tensor:
        """New features (N, F) from the filters of pairs (P, F)."""
        active = self.activation(x)
        messages = at_senders(self.of_sender(active).to(x.dtype), graph) * at_both_edges(filters, pairs)  # (E, F)
        received = self.of_receiver(active).to(x.dtype) + sum_over_edges(messages, graph)
        update: Tensor = self.output(self.residuals(received))
        return self.gate * x + update


class Output(nn.Module):
    """Energy, and charge where wanted, of an atom."""

    def __init__(self, section: PhysNetSection, num_outputs: int) -> None:
        super().__init__()
        self.residuals = residuals(section.num_output_residuals, section.num_features)
        self.activation = ShiftedSoftplus()
        self.last = nn.Linear(section.num_features, num_outputs, bias=False)
        nn.init.zeros_(self.last.weight)
        # Not zero as in the paper: the Coulomb energy is quadratic in the charges, so of zeros it has no slope, and they stay.
        nn.init.normal_(self.last.weight[1:], std=FIRST_CHARGES / section.num_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) -> (N, O)."""
        return without_autocast(self.last, self.activation(self.residuals(x)), dtype=x.dtype)


def excess(energies: Tensor) -> Tensor:
    """How much modules say beside the one before them, (T, N) -> (N,)."""
    squares = energies.square()
    return (squares[1:] / (squares[1:] + squares[:-1] + SMALLEST_SQUARE)).sum(dim=0)


class PhysNet(Potential):
    """The network of the module's docstring."""

    def __init__(self, section: PhysNetSection, elements: Sequence[int]) -> None:
        num_features, num_layers, num_outputs = section.num_features, section.num_layers, 1 + section.partial_charges
        super().__init__(
            section,
            elements=elements,
            num_scalars=num_features,
            has_charges=section.partial_charges,
            has_penalty=section.hierarchy_weight > 0,
        )
        self.hierarchy_weight = section.hierarchy_weight
        self.embedding = ElementEmbedding(elements, num_features, charge=section.charge_embedding, spin=section.spin_embedding)
        self.radial_basis = ExpNormalBasis(num_radial=section.num_radial, cutoff=section.cutoff, rate=1.0)
        self.filters = nn.Linear(section.num_radial, num_layers * num_features, bias=False)
        nn.init.zeros_(self.filters.weight)
        self.interactions = nn.ModuleList(Interaction(section) for _ in range(num_layers))
        self.residuals = nn.ModuleList(residuals(section.num_atomic_residuals, num_features) for _ in range(num_layers))
        self.outputs = nn.ModuleList(Output(section, num_outputs) for _ in range(num_layers))
        self.scale_of_element = ElementEmbedding(elements, num_outputs)
        self.shift_of_element = ElementEmbedding(elements, num_outputs)
        nn.init.ones_(self.scale_of_element.weight)
        nn.init.zeros_(self.shift_of_element.weight)

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, features and charges."""
        pairs = pairs_of(graph.reverse_edge)
        x = self.embedding(graph)  # (N, F)
        said: list[Tensor] = []
        blocks = zip(self.interactions, self.residuals, self.outputs, self._filters(graph, pairs), strict=True)
        for interaction, atomic_residuals, output, filters in blocks:
            x = atomic_residuals(interaction(x, filters, pairs, graph))
            said.append(output(x))  # (N, O)
        together = torch.stack(said)  # (T, N, O)
        total = self.scale_of_element(graph) * together.sum(dim=0) + self.shift_of_element(graph)
        charges = conserved(total[:, 1], graph)[:, None] if self.has_charges else None
        penalties = self.hierarchy_weight * excess(together[:, :, 0])[:, None] if self.has_penalty else None
        return AtomicOutputs.of(total[:, 0], x, charges=charges, penalties=penalties)

    def _filters(self, graph: AtomicGraph, pairs: Pairs) -> Sequence[Tensor]:
        """G g of each module, T x (P, F)."""
        distance = mean_of_pair(graph.edge_vectors.norm(dim=1), pairs)  # (P,)
        radial = self.radial_basis(distance) * polynomial_cutoff(distance, self.cutoff)[:, None]
        return torch.chunk(self.filters(radial).to(radial.dtype), len(self.interactions), dim=1)
