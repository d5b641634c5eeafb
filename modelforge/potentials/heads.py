"""Heads that any potential can carry: partial charges, and forces that are no derivative.

N atoms, E edges, F scalar and G vector features of the potential, S structures.
"""

import torch
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_atoms, at_receivers, at_senders, sum_over_atoms, sum_over_edges
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import dense, two_layers, without_autocast
from modelforge.nn.radial import ExpNormalBasis
from modelforge.potentials.potential import AtomicOutputs

NUM_RADIAL = 16


def conserved(charges: Tensor, graph: AtomicGraph, *, weights: Tensor | None = None, epsilon: float = 0.0) -> Tensor:
    """Charges (N,) shifted so that they add up to the total charge of each structure, (N,).

    What is missing is shared out in equal parts (PhysNet: Unke, Meuwly, J. Chem. Theory Comput. 15, 3678, 2019), or in
    proportion to `weights` (N,), whose sum is kept from zero by `epsilon` (AIMNet2: Anstine et al., Chem. Sci., 2025).
    """
    weights = torch.ones_like(charges) if weights is None else weights
    sums = sum_over_atoms(torch.stack([charges, weights], dim=1), graph)  # (S, 2)
    missing = (graph.total_charge - sums[:, 0]) / (sums[:, 1] + epsilon)  # (S,)
    return charges + weights * at_atoms(missing, graph)


class PartialCharges(nn.Module):
    """Charges of atoms in elementary charges, which add up to the total charge."""

    def __init__(self, num_scalars: int) -> None:
        super().__init__()
        self.network = two_layers(num_scalars, max(num_scalars // 2, 1), 1, nn.SiLU)

    def forward(self, outputs: AtomicOutputs, graph: AtomicGraph) -> Tensor:
        """(N,)."""
        dtype = graph.edge_vectors.dtype
        return conserved(without_autocast(self.network, outputs.scalars, dtype=dtype)[:, 0], graph)


class VectorForces(nn.Module):
    """Forces as combinations of vector features, gated by the scalars: F_i = sum_g w_g(q_i) (W mu_i)_g.

    The gated equivariant block of PaiNN (Schuett, Unke, Gastegger, ICML 2021), in its last step.
    """

    def __init__(self, num_scalars: int, num_vectors: int) -> None:
        super().__init__()
        self.channels = dense(num_vectors, num_vectors, bias=False)
        self.gates = two_layers(num_scalars, num_scalars, num_vectors, nn.SiLU)

    def forward(self, outputs: AtomicOutputs, graph: AtomicGraph) -> Tensor:
        """Forces in units of the energy model's scale per angstrom, (N, 3)."""
        dtype = graph.edge_vectors.dtype
        gates = without_autocast(self.gates, outputs.scalars, dtype=dtype)  # (N, G)
        channels = without_autocast(self.channels, outputs.vectors, dtype=dtype)  # (N, 3, G)
        return (gates[:, None] * channels).sum(dim=2)


class PairForces(nn.Module):
    """Forces along the edges, for potentials without vector features: F_i = sum_j f(q_i, q_j, d_ij) u_ij f_c(d_ij).

    f is not the same for both atoms of a pair, so the forces of a molecule need not add up to zero.
    """

    def __init__(self, num_scalars: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.radial_basis = ExpNormalBasis(num_radial=NUM_RADIAL, cutoff=cutoff)
        self.of_receiver = dense(num_scalars, num_scalars)
        self.of_sender = dense(num_scalars, num_scalars, bias=False)
        self.of_distance = dense(NUM_RADIAL, num_scalars, bias=False)
        self.output = nn.Sequential(nn.SiLU(), dense(num_scalars, 1))

    def forward(self, outputs: AtomicOutputs, graph: AtomicGraph) -> Tensor:
        """Forces in units of the energy model's scale per angstrom, (N, 3)."""
        dtype = graph.edge_vectors.dtype
        distance = graph.edge_vectors.norm(dim=1)  # (E,)
        envelope = cosine_cutoff(distance, self.cutoff)[:, None]  # (E, 1)
        receivers, senders = (without_autocast(of, outputs.scalars, dtype=dtype) for of in (self.of_receiver, self.of_sender))
        of_atoms = at_receivers(receivers, graph) + at_senders(senders, graph)  # (E, F)
        of_distance = without_autocast(self.of_distance, self.radial_basis(distance), dtype=dtype)
        strength = without_autocast(self.output, of_atoms + of_distance, dtype=dtype)  # (E, 1)
        return sum_over_edges(strength * envelope * graph.edge_vectors / distance[:, None], graph)
