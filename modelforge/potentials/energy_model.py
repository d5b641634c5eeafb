"""`EnergyModel`: a potential in physical units, with forces and stress as derivatives by the edge vectors, and its heads.

Legend: S structures, N atoms, E edges, L far edges. Energies are without self-energies and fixed energies, which live in
float64 outside the network.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modelforge.atoms.graph import ABSENT, AtomicGraph, Prediction, Reach, tensors_of
from modelforge.atoms.sums import sum_over_atoms, sum_over_edges, sum_over_sent_edges
from modelforge.potentials.coulomb import NoCoulomb
from modelforge.potentials.heads import PairForces, PartialCharges, VectorForces
from modelforge.potentials.potential import AtomicOutputs, Potential


class Outputs(NamedTuple):
    """What comes out of the networks for a batch."""

    energy: Tensor  # (S,) eV
    charges: Tensor  # (N,) elementary charges, or ABSENT
    atoms: AtomicOutputs


class EnergyModel(nn.Module):
    """Atomic energies of a potential times a scale in eV, with the heads and the Coulomb energy of its section."""

    scale: Tensor

    def __init__(self, potential: Potential, *, scale: float = 1.0) -> None:
        super().__init__()
        section = potential.section
        self.potential = potential
        self.register_buffer("scale", torch.tensor(scale))
        self.has_charges, self.has_penalty = section.partial_charges, potential.has_penalty
        self.charges = PartialCharges(potential.num_scalars) if self.has_charges and not potential.has_charges else None
        self.direct_forces = _direct_forces(potential) if section.forces == "direct" else None
        self.coulomb = None if isinstance(section.coulomb, NoCoulomb) else section.coulomb

    @property
    def reach(self) -> Reach:
        """The edges and triples that its graphs must have."""
        return self.potential.reach

    @property
    def is_conservative(self) -> bool:
        """Whether forces are minus the gradient of the energy."""
        return self.direct_forces is None

    def forward(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Energies, and forces and stress where wanted (NaN where not), differentiable by the weights while training.

        Forces are `-dE/dr`: with g = dE/d(edge vector), the sum of g over the received minus that over the sent edges; or
        those of the direct head. Stress is `1/V sum_edges sym(r (x) g)`, tension positive, NaN unless periodic in three
        directions. Charges and their moments come with the energy, if the model has charges.
        """
        return self.with_penalties(graph, forces=forces, stress=stress)[0]

    def with_penalties(self, graph: AtomicGraph, *, forces: bool, stress: bool) -> tuple[Prediction, Tensor]:
        """The prediction, and what the network adds to the loss: (N, 1) if it has a penalty, else (N, 0)."""
        if not (stress or (forces and self.is_conservative)):
            with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
                outputs = self._outputs(graph)
                by_atom = self._direct(outputs, graph) if forces else ABSENT
                return self._prediction(outputs, graph, by_atom, ABSENT), outputs.atoms.penalties
        with torch.enable_grad():
            tracked = _tracked(graph)
            outputs = self._outputs(tracked)
            near, far = _derivatives(outputs.energy, tracked, create_graph=self.training)
        if not self.is_conservative:
            by_atom = self._direct(outputs, graph) if forces else ABSENT
        elif forces:
            by_atom = _forces(near, graph) if far is None else _forces(near, graph) + _forces(far, graph.far)
        else:
            by_atom = ABSENT
        prediction = self._prediction(outputs, graph, by_atom, _stress(near, far, graph) if stress else ABSENT)
        return prediction if self.training else _detached(prediction), outputs.atoms.penalties

    def _outputs(self, graph: AtomicGraph) -> Outputs:
        atoms: AtomicOutputs = self.potential(graph)
        energy = sum_over_atoms(atoms.energies.to(self.scale.dtype) * self.scale, graph)
        if not self.has_charges:
            return Outputs(energy, ABSENT, atoms)
        charges = atoms.charges[:, 0] if self.charges is None else self.charges(atoms, graph)
        if self.coulomb is not None:
            energy = energy + self.coulomb.energies(charges, graph)
        return Outputs(energy, charges, atoms)

    def _direct(self, outputs: Outputs, graph: AtomicGraph) -> Tensor:
        assert self.direct_forces is not None
        forces: Tensor = self.direct_forces(outputs.atoms, graph) * self.scale
        return forces

    def _prediction(self, outputs: Outputs, graph: AtomicGraph, forces: Tensor, stress: Tensor) -> Prediction:
        energy, charges = outputs.energy, outputs.charges
        forces = _not_computed(energy, graph.num_atoms, 3) if forces is ABSENT else forces
        stress = _not_computed(energy, graph.num_structures, 3, 3) if stress is ABSENT else stress
        if charges is ABSENT:
            return Prediction(energy, forces, stress)
        return Prediction(energy, forces, stress, *_moments(charges, graph), charges)


def _direct_forces(potential: Potential) -> VectorForces | PairForces:
    if potential.num_vectors:
        return VectorForces(potential.num_scalars, potential.num_vectors)
    return PairForces(potential.num_scalars, potential.cutoff)


def _tracked(graph: AtomicGraph) -> AtomicGraph:
    """The graph with vectors by which can be differentiated."""
    near, far = graph.edge_vectors.detach().requires_grad_(), graph.far_edge_vectors.detach()
    return replace(graph, edge_vectors=near, far_edge_vectors=far.requires_grad_() if far.shape[0] else far)


def _derivatives(energy: Tensor, graph: AtomicGraph, *, create_graph: bool) -> tuple[Tensor, Tensor | None]:
    """dE/d(edge vector), (E, 3), and by the far ones, (L, 3), if there are any."""
    vectors = [graph.edge_vectors, graph.far_edge_vectors] if graph.far_edge_vectors.requires_grad else [graph.edge_vectors]
    if not energy.requires_grad:  # no edges, and weights that are not trained
        found = tuple(torch.zeros_like(vector) for vector in vectors)
    else:
        found = torch.autograd.grad(energy.sum(), vectors, create_graph=create_graph, materialize_grads=True)
    return found[0], found[1] if len(found) > 1 else None


def _forces(gradient: Tensor, graph: AtomicGraph) -> Tensor:
    return sum_over_edges(gradient, graph) - sum_over_sent_edges(gradient, graph)


def _stress(near: Tensor, far: Tensor | None, graph: AtomicGraph) -> Tensor:
    virial = _virial(near, graph) if far is None else _virial(near, graph) + _virial(far, graph.far)  # (S, 3, 3)
    # Selected, not divided by NaN: the derivative of structures without a volume is then zero instead of NaN.
    volume = graph.volume[:, None, None]
    stress = 0.5 * (virial + virial.transpose(1, 2)) / torch.where(volume.isfinite(), volume, 1.0)
    return torch.where(volume.isfinite(), stress, torch.nan)


def _virial(gradient: Tensor, graph: AtomicGraph) -> Tensor:
    vectors = graph.edge_vectors.detach()
    return sum_over_atoms(sum_over_edges(vectors[:, :, None] * gradient[:, None, :], graph), graph)


def _moments(charges: Tensor, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
    """Dipole sum q r (S, 3) and second moments sum q r r^T (S, 3, 3) about the centre of mass; NaN where it is not known."""
    known = graph.positions.isfinite()
    positions = torch.where(known, graph.positions, 0.0)
    weighted = charges[:, None] * positions  # (N, 3)
    everywhere = sum_over_atoms((~known).to(positions.dtype), graph) == 0  # (S, 3)
    dipole = torch.where(everywhere, sum_over_atoms(weighted, graph), torch.nan)
    second = sum_over_atoms(weighted[:, :, None] * positions[:, None, :], graph)
    return dipole, torch.where(everywhere[:, :, None], second, torch.nan)


def _not_computed(like: Tensor, *shape: int) -> Tensor:
    return like.new_full(shape, float("nan"))


def _detached(prediction: Prediction) -> Prediction:
    return Prediction(*(tensor.detach() for tensor in tensors_of(prediction)))
