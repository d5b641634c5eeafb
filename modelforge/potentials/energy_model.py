"""`EnergyModel`: a potential in physical units, with forces and stress as derivatives by the edge vectors.

Legend: S structures, N atoms, E edges. Energies are without self-energies, which live in float64 outside the network.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph, Prediction
from modelforge.atoms.sums import sum_over_atoms, sum_over_edges, sum_over_sent_edges
from modelforge.potentials.potential import Potential


class EnergyModel(nn.Module):
    """Atomic energies of a potential times a scale in eV."""

    scale: Tensor

    def __init__(self, potential: Potential, *, scale: float = 1.0) -> None:
        super().__init__()
        self.potential = potential
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Energies, and forces and stress where wanted (NaN where not), differentiable by the weights while training.

        Forces are `-dE/dr`: with g = dE/d(edge vector), the sum of g over the received minus that over the sent edges.
        Stress is `1/V sum_edges sym(r (x) g)`, tension positive, NaN unless periodic in three directions.
        """
        if not (forces or stress):
            energy = self._energies(graph) if self.training else self._energies(graph).detach()
            return Prediction(energy, _not_computed(energy, graph.num_atoms), _not_computed(energy, energy.shape[0], 3))
        with torch.enable_grad():
            vectors = graph.edge_vectors.detach().requires_grad_()
            energy = self._energies(replace(graph, edge_vectors=vectors))
            gradient = _derivative(energy, vectors, create_graph=self.training)
        if not self.training:
            energy = energy.detach()
        return Prediction(
            energy,
            sum_over_edges(gradient, graph) - sum_over_sent_edges(gradient, graph)
            if forces
            else _not_computed(energy, graph.num_atoms),
            _stress(vectors.detach(), gradient, graph) if stress else _not_computed(energy, energy.shape[0], 3),
        )

    def _energies(self, graph: AtomicGraph) -> Tensor:
        return sum_over_atoms(self.potential(graph).to(self.scale.dtype) * self.scale, graph)


def _derivative(energy: Tensor, vectors: Tensor, *, create_graph: bool) -> Tensor:
    if not energy.requires_grad:  # no edges, and weights that are not trained
        return torch.zeros_like(vectors)
    (gradient,) = torch.autograd.grad(energy.sum(), vectors, create_graph=create_graph, materialize_grads=True)
    return gradient


def _stress(vectors: Tensor, gradient: Tensor, graph: AtomicGraph) -> Tensor:
    virial = sum_over_atoms(sum_over_edges(vectors[:, :, None] * gradient[:, None, :], graph), graph)  # (S, 3, 3)
    # Selected, not divided by NaN: the derivative of structures without a volume is then zero instead of NaN.
    volume = graph.volume[:, None, None]
    stress = 0.5 * (virial + virial.transpose(1, 2)) / torch.where(volume.isfinite(), volume, 1.0)
    return torch.where(volume.isfinite(), stress, torch.nan)


def _not_computed(like: Tensor, *shape: int) -> Tensor:
    return like.new_full((*shape, 3), float("nan"))
