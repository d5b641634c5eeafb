"""`AtomicGraph`, `Labels` and `Batch`: what potentials, loss and metrics take.

Legend: S structures, N atoms, E edges of the batch. An edge is a directed pair receiver <- sender within the cutoff, with the
vector `r_sender + shift - r_receiver`; with each edge comes its reverse. Edges are sorted by receiver, atoms by structure.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", "AtomicGraph", "Labels")


@dataclass(frozen=True, eq=False)
class AtomicGraph:
    """A batch of structures as atoms and edges; one structure is a batch of one."""

    atomic_numbers: Tensor  # (N,)
    edge_index: Tensor  # (2, E) receiver, sender
    edge_vectors: Tensor  # (E, 3) angstrom
    reverse_edge: Tensor  # (E,) the edge sender <- receiver of each edge
    first_edge: Tensor  # (N,) first edge that each atom receives
    structure_index: Tensor  # (N,)
    first_atom: Tensor  # (S,)
    volume: Tensor  # (S,) angstrom^3; NaN unless periodic in three directions

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


@dataclass(frozen=True, eq=False)
class Labels:
    """What can be trained on, or the prediction of it; NaN where it is missing or was not computed."""

    energy: Tensor  # (S,) eV, without self-energies
    forces: Tensor  # (N, 3) eV/angstrom
    stress: Tensor  # (S, 3, 3) eV/angstrom^3


Prediction = Labels


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures with their labels, and which ones they are."""

    graph: AtomicGraph
    labels: Labels
    indices: Tensor  # (S,) place of each structure in its data set; -1 for a stand-in, which counts nowhere
    subset: Tensor  # (S,) subset (config type) of each structure
    weight: Tensor  # (S,) of each structure in the loss
    label_counts: Tensor  # (4,) labels in the optimizer step: energies, structures with forces, components of forces, of stress

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
