"""`AtomicGraph`, `Labels` and `Batch`: what potentials, loss and metrics take; `Reach`: which edges a graph has.

Legend: S structures, N atoms, E edges, M triples, L far edges of the batch. An edge is a directed pair receiver <- sender
within the cutoff, with the vector `r_sender + shift - r_receiver`; with each edge comes its reverse. Edges are sorted by
receiver, atoms by structure.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", "AtomicGraph", "Labels")

ABSENT = torch.empty(0)
"""Stands for a quantity that is missing everywhere."""

LABEL_COUNTS = (
    "energies",
    "structures with forces",
    "components of forces",
    "components of stress",
    "components of dipoles",
    "components of quadrupoles",
    "partial charges",
    "atoms",
)
"""What a structure's labels are counted by; atoms for means over all of them."""


@dataclass(frozen=True)
class Reach:
    """How far a potential looks, in angstrom: the edges and triples that its graphs must have; 0 where there are none."""

    cutoff: float
    triples_cutoff: float = 0.0
    far_cutoff: float = 0.0  # infinity: all pairs of atoms, of structures that are not periodic
    positions: bool = False  # whether moments of charges are wanted


@dataclass(frozen=True, eq=False)
class AtomicGraph:
    """A batch of structures as atoms and edges; one structure is a batch of one.

    Triples and far edges are there where the reach of the potential asks for them.
    """

    atomic_numbers: Tensor  # (N,)
    edge_index: Tensor  # (2, E) receiver, sender
    edge_vectors: Tensor  # (E, 3) angstrom
    reverse_edge: Tensor  # (E,) the edge sender <- receiver of each edge
    first_edge: Tensor  # (N,) first edge that each atom receives
    structure_index: Tensor  # (N,)
    first_atom: Tensor  # (S,)
    volume: Tensor  # (S,) angstrom^3; NaN unless periodic in three directions
    total_charge: Tensor  # (S,) elementary charges; 0 where the data say nothing
    spin_multiplicity: Tensor  # (S,) 2S+1; 1 where the data say nothing
    positions: Tensor  # (N, 3) angstrom from the centre of mass of the structure: of moments, and of nothing else
    triples: Tensor  # (2, M) two edges that one atom receives; see `triples.py`
    far_edge_index: Tensor  # (2, L) edges of a second, longer cutoff, in the same order
    far_edge_vectors: Tensor  # (L, 3) angstrom
    far_reverse_edge: Tensor  # (L,)
    far_first_edge: Tensor  # (N,)

    @property
    def receivers(self) -> Tensor:
        """Receiving atom of each edge, (E,)."""
        return self.edge_index[0]

    @property
    def senders(self) -> Tensor:
        """Sending atom of each edge, (E,)."""
        return self.edge_index[1]

    @property
    def num_atoms(self) -> int:
        """N."""
        return self.atomic_numbers.shape[0]

    @property
    def num_edges(self) -> int:
        """E."""
        return self.edge_vectors.shape[0]

    @property
    def num_structures(self) -> int:
        """S."""
        return self.first_atom.shape[0]

    @property
    def far(self) -> "AtomicGraph":
        """The same atoms with the far edges in the place of the edges."""
        return replace(
            self,
            edge_index=self.far_edge_index,
            edge_vectors=self.far_edge_vectors,
            reverse_edge=self.far_reverse_edge,
            first_edge=self.far_first_edge,
        )


@dataclass(frozen=True, eq=False)
class Labels:
    """What can be trained on, or the prediction of it; NaN where it is missing or was not computed."""

    energy: Tensor  # (S,) eV, without self-energies and fixed energies
    forces: Tensor  # (N, 3) eV/angstrom
    stress: Tensor  # (S, 3, 3) eV/angstrom^3
    dipole: Tensor = ABSENT  # (S, 3) e*angstrom, about the centre of mass
    quadrupole: Tensor = ABSENT  # (S, 3, 3) e*angstrom^2, second moments sum q r r^T about the centre of mass
    partial_charges: Tensor = ABSENT  # (N,) elementary charges

    def __post_init__(self) -> None:
        num_structures, num_atoms = self.energy.shape[0], self.forces.shape[0]
        shapes = {"dipole": (num_structures, 3), "quadrupole": (num_structures, 3, 3), "partial_charges": (num_atoms,)}
        for name, shape in shapes.items():
            if getattr(self, name) is ABSENT:
                object.__setattr__(self, name, self.energy.new_full((), math.nan).expand(shape))


Prediction = Labels


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures with their labels, and which ones they are."""

    graph: AtomicGraph
    labels: Labels
    indices: Tensor  # (S,) place of each structure in its data set; -1 for a stand-in, which counts nowhere
    subset: Tensor  # (S,) subset (config type) of each structure
    weight: Tensor  # (S,) of each structure in the loss
    label_counts: Tensor  # (8,) labels in the optimizer step, in the order of LABEL_COUNTS

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        if self.indices.device == device:
            return self
        parts = (_moved(self.graph, device), _moved(self.labels, device))
        rest = (self.indices, self.subset, self.weight, self.label_counts)
        return Batch(*parts, *(tensor.to(device, non_blocking=True) for tensor in rest))


def tensors_of(record: AtomicGraph | Labels) -> tuple[Tensor, ...]:
    """The tensors of a record, in the order of its fields."""
    return tuple(getattr(record, field.name) for field in fields(record))


def _moved(record: Record, device: torch.device) -> Record:
    return type(record)(*(tensor.to(device, non_blocking=True) for tensor in tensors_of(record)))
