"""The shape of structures by their distances, the same for rotated, shifted, mirrored and renumbered atoms.

The surroundings of an atom are its distances to the other atoms of a molecule, ordered within each element, or to its nearest
neighbours in a crystal, images included. The outline of a structure orders these once more among like atoms and is the same
whatever their numbering. Ordering brings lists nearer to each other, never farther: outlines that differ mean shapes that do.

Legend: M structures of one composition and periodicity, A atoms of each, K distances of an atom.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from modelforge.atoms.neighbors import find_edges
from modelforge.data.structures import Floats, Integers, Structures

NUM_NEIGHBORS = 32  # of each atom of a crystal: hexagonal and cubic close packing have the same 18 and differ after them
SHELL = 2.2  # cube roots of the volume per atom: a sphere with 45 atoms, on average
SHELL_OF_SURFACES = 6.0  # angstrom, where the volume means nothing
MAX_DISTANCES = 64  # of an atom of a molecule; of a larger one an evenly spaced part of the ordered distances

Singles = NDArray[np.float32]


def kinds_of(structures: Structures) -> Integers:
    """Atomic numbers of structures of one composition, ascending, as surroundings and outlines have their atoms, (A,)."""
    return np.sort(structures.atomic_numbers[: structures.num_atoms[0]].astype(np.int64))


def surroundings(structures: Structures) -> Singles:
    """Distances of each atom of structures of one composition, atoms ordered by element, (M, A, K) in angstrom."""
    num_atoms = int(structures.num_atoms[0])
    order = np.argsort(structures.atomic_numbers.reshape(-1, num_atoms), axis=1, kind="stable")
    positions = np.take_along_axis(structures.positions.reshape(-1, num_atoms, 3), order[:, :, None], axis=1)
    if structures.periodic[0].any():
        crystals = zip(positions, structures.cell, structures.periodic, strict=True)
        return np.stack([_to_neighbors(*crystal) for crystal in crystals])
    distances = _all_distances(positions)
    _sort_blocks(distances, kinds_of(structures))
    if num_atoms <= MAX_DISTANCES:
        return distances
    return distances[:, :, np.linspace(0, num_atoms - 1, MAX_DISTANCES).astype(np.int64)]


def outlines(of_atoms: Singles, kinds: Integers) -> Singles:
    """Surroundings (M, A, K) ordered among like atoms, (M, A * K)."""
    by_atom = np.ascontiguousarray(np.swapaxes(of_atoms, 1, 2))
    _sort_blocks(by_atom, kinds)
    return by_atom.reshape(len(by_atom), -1)


def assigned_difference(first: Singles, second: Singles, kinds: Integers) -> float:
    """Root mean square difference of surroundings (A, K) with like atoms assigned for the least sum, angstrom."""
    squares = np.einsum("ak,ak->a", first, first)[:, None] + np.einsum("ak,ak->a", second, second) - 2 * first @ second.T
    unlike = kinds[:, None] != kinds
    rows, columns = linear_sum_assignment(np.where(unlike, 1e6, squares))
    return float(np.sqrt(np.mean((first[rows] - second[columns]) ** 2)))


def _all_distances(positions: Floats) -> Singles:
    """Distances between all atoms of molecules, (M, A, A)."""
    axes = np.moveaxis(positions - positions.mean(axis=1, keepdims=True), 2, 0).astype(np.float32)
    total = np.zeros((*positions.shape[:2], positions.shape[1]), dtype=np.float32)
    for axis in axes:
        difference = axis[:, :, None] - axis[:, None, :]
        difference *= difference
        total += difference
    return np.sqrt(total, out=total)


def _to_neighbors(positions: Floats, cell: Floats, periodic: NDArray[np.bool_]) -> Singles:
    """Ordered distances of each atom of a crystal to its nearest neighbours, as far as there are some, (A, K)."""
    edge = float(np.cbrt(abs(np.linalg.det(cell)) / len(positions))) if periodic.all() else 0.0
    cutoff = SHELL * edge or SHELL_OF_SURFACES
    edges = find_edges(np.array([len(positions)]), positions, cell[None], periodic[None], cutoff=cutoff)
    distance = np.linalg.norm(edges.vectors, axis=1)
    order = np.lexsort((distance, edges.receivers))
    receivers = edges.receivers[order]
    count = np.bincount(receivers, minlength=len(positions))
    rank = np.arange(len(receivers)) - np.repeat(np.cumsum(count) - count, count)
    near = rank < NUM_NEIGHBORS
    nearest = np.full((len(positions), NUM_NEIGHBORS + 1), cutoff, dtype=np.float32)
    nearest[receivers[near], rank[near]] = distance[order][near]
    nearest[:, -1] = edge
    return nearest


def _sort_blocks(rows: Singles, labels: Integers) -> None:
    """Order the last axis in place within each run of equal labels."""
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1], [True]]))
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        rows[..., begin:end].sort(axis=-1)
