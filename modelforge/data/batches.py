"""Batches gathered from flat arrays: no Python object per structure, no collation.

Legend: S structures, N atoms, E edges of the set; b marks those of a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph, Batch, Labels
from modelforge.atoms.neighbors import Edges
from modelforge.data.edge_cache import edges_of
from modelforge.data.structures import Floats, Integers, Structures


@dataclass(frozen=True, eq=False)
class StructureTable:
    """A set of structures with edges and labels as tensors of the training precision, from which batches are gathered."""

    num_atoms: Tensor  # (S,)
    num_edges: Tensor  # (S,)
    first_atom: Tensor  # (S,)
    first_edge: Tensor  # (S,)
    volume: Tensor  # (S,)
    energy: Tensor  # (S,) eV, self-energies removed in float64 before the cast
    stress: Tensor  # (S, 3, 3)
    subset: Tensor  # (S,)
    atomic_numbers: Tensor  # (N,)
    forces: Tensor  # (N, 3)
    edges_of_atom: Tensor  # (N,) how many edges each atom receives
    receivers: Tensor  # (E,) counted within the structure, like the next two
    senders: Tensor  # (E,)
    reverse: Tensor  # (E,)
    vectors: Tensor  # (E, 3)

    def __len__(self) -> int:
        return self.num_atoms.shape[0]

    def batch(self, chosen: Tensor) -> Batch:
        """The chosen structures (S_b,) as a batch, in the order of the choice."""
        num_atoms, num_edges = self.num_atoms[chosen], self.num_edges[chosen]
        first_atom = num_atoms.cumsum(0) - num_atoms  # (S_b,)
        first_edge = num_edges.cumsum(0) - num_edges  # (S_b,)
        structure_index, atoms = _ragged(self.first_atom[chosen] - first_atom, num_atoms)  # (N_b,)
        edge_structure, edges = _ragged(self.first_edge[chosen] - first_edge, num_edges)  # (E_b,)
        edges_of_atom = self.edges_of_atom[atoms]
        ends = torch.stack([self.receivers[edges], self.senders[edges]])  # (2, E_b)
        graph = AtomicGraph(
            atomic_numbers=self.atomic_numbers[atoms],
            edge_index=ends + first_atom[edge_structure],
            edge_vectors=self.vectors[edges],
            reverse_edge=self.reverse[edges] + first_edge[edge_structure],
            first_edge=edges_of_atom.cumsum(0) - edges_of_atom,
            structure_index=structure_index,
            first_atom=first_atom,
            volume=self.volume[chosen],
        )
        labels = Labels(self.energy[chosen], self.forces[atoms], self.stress[chosen])
        return Batch(graph, labels, chosen, self.subset[chosen])


def structure_table(
    structures: Structures, *, cutoff: float, self_energies: Floats, dtype: torch.dtype, edges: Edges | None = None
) -> StructureTable:
    """The table of a set; `self_energies` (by atomic number, eV) are subtracted in float64, then all is cast once."""
    edges = edges or edges_of(structures, cutoff=cutoff)
    receiver_of_all = edges.receivers + np.repeat(structures.offsets[:-1], edges.num_edges)
    interaction = structures.energy - sum_of_constants(structures, self_energies)
    num_edges = edges.num_edges
    return StructureTable(
        num_atoms=_index(structures.num_atoms),
        num_edges=_index(num_edges),
        first_atom=_index(structures.offsets[:-1]),
        first_edge=_index(np.cumsum(num_edges) - num_edges),
        volume=torch.from_numpy(_volumes(structures)).to(dtype),
        energy=torch.from_numpy(interaction).to(dtype),
        stress=torch.from_numpy(structures.stress).to(dtype),
        subset=_index(structures.subset),
        atomic_numbers=_index(structures.atomic_numbers),
        forces=torch.from_numpy(structures.forces).to(dtype),
        edges_of_atom=_index(np.bincount(receiver_of_all, minlength=len(structures.atomic_numbers))),
        receivers=_index(edges.receivers),
        senders=_index(edges.senders),
        reverse=_index(edges.reverse),
        vectors=torch.from_numpy(edges.vectors).to(dtype),
    )


def sum_of_constants(structures: Structures, by_element: Floats) -> Floats:
    """The sum of a constant of each atom's element over the structures, float64, (S,); `by_element` by atomic number."""
    return np.add.reduceat(by_element[structures.atomic_numbers], structures.offsets[:-1])


def _volumes(structures: Structures) -> Floats:
    volume = np.abs(np.linalg.det(structures.cell))
    return np.where(structures.periodic.all(axis=1), volume, np.nan)


def _index(numbers: Integers | np.ndarray[tuple[int], np.dtype[np.int32]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64))


def _ragged(shift: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts (S_b,) the owner of each element, and its place in the set: place in the batch plus the owner's shift."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(owner.shape[0], device=counts.device) + shift[owner]
