"""The shortest distance between two atoms of each structure, over all structures, periodic images included.

Molecules of one size are compared all pairs at once, without lists of pairs: the atoms of a molecule against the same atoms
shifted by 1, 2, ... places meet every pair. Crystals go through vesin's cell list, with a cutoff that grows until it finds.

Legend: S structures, M molecules of A atoms each, E edges.
"""

from dataclasses import dataclass

import numpy as np
import vesin
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from modelforge.atoms.neighbors import find_edges
from modelforge.data.audit.findings import Finding
from modelforge.data.audit.sampling import portions
from modelforge.data.structures import Floats, Integers, Structures

SAME_PLACE = 0.05  # angstrom; below it two atoms are one atom written twice
CLOSE = 0.35  # of the sum of covalent radii; H-H in H2 has 1.2, the shortest of compressed solids and hot molecules 0.6
NUM_REPORTED = 5
FIRST_CUTOFF = 1.2  # cube roots of the volume per atom; nearest neighbours of close packing are at 1.12, others nearer
MAX_FIRST_CUTOFF = 3.0  # angstrom; where there is vacuum in the cell
MAX_CUTOFF = 100.0  # angstrom; an atom without a neighbour up to there has none
MAX_ATOMS_ALL_PAIRS = 1_000
ATOMS_AT_ONCE = 8_192  # so that the arrays of one comparison stay in the processor's cache

Singles = NDArray[np.float32]
RADII: Singles = covalent_radii.astype(np.float32)


@dataclass(frozen=True)
class ClosePair:
    """Two atoms near each other; equal atoms are an atom and its own image."""

    structure: int
    first: int
    second: int
    distance: float  # angstrom
    relative: float  # to the sum of the covalent radii


@dataclass(frozen=True, eq=False)
class ShortestDistances:
    """The shortest distance in each structure (infinite for lone atoms), and the closest pairs of all."""

    structures: Integers  # (S,) which structures these are
    distance: Singles  # (S,) angstrom
    relative: Singles  # (S,) least distance relative to the sum of covalent radii
    closest: tuple[ClosePair, ...]  # the least distances, one of each structure
    relatively_closest: tuple[ClosePair, ...]  # the least relative distances, one of each structure


def shortest_distances(structures: Structures, chosen: Integers | None = None) -> ShortestDistances:
    """The shortest distances of the chosen structures, all by default."""
    indices, found = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 2), dtype=np.float32)]
    for members, piece in portions(structures, chosen):
        indices.append(members)
        found.append(_of_portion(piece))
    members, least = np.concatenate(indices), np.concatenate(found)
    closest, relatively = (
        tuple(_closest_pair(structures, int(members[place]), by_column=column) for place in _smallest(least[:, column]))
        for column in (0, 1)
    )
    return ShortestDistances(members, least[:, 0], least[:, 1], closest, relatively)


def distance_findings(structures: Structures, shortest: ShortestDistances, *, length_scale: float) -> tuple[Finding, ...]:
    """Identical atoms, which stop a run, and atoms that are far too close; lengths `length_scale` times too large."""
    identical = [pair for pair in shortest.closest if pair.distance < SAME_PLACE * min(length_scale, 1.0)]
    if identical:
        return tuple(_identical_atoms(structures, pair) for pair in identical)
    if not shortest.relatively_closest or shortest.relatively_closest[0].relative >= CLOSE * length_scale:
        return ()
    count = int((shortest.relative < CLOSE * length_scale).sum())
    return (_close_atoms(structures, shortest.relatively_closest[0], count),)


def _identical_atoms(structures: Structures, pair: ClosePair) -> Finding:
    place = structures.place(pair.structure)
    message = f"{place}: atoms {pair.first} and {pair.second} are in the same place ({pair.distance:.4f} angstrom apart)"
    return Finding("stop", "dataset.path", f"{message}; remove one of them, or the structure")


def _close_atoms(structures: Structures, pair: ClosePair, count: int) -> Finding:
    start = structures.offsets[pair.structure]
    first, second = (chemical_symbols[structures.atomic_numbers[start + atom]] for atom in (pair.first, pair.second))
    return Finding(
        "note",
        "dataset.path",
        f"{structures.place(pair.structure)}: atoms {pair.first} ({first}) and {pair.second} ({second}) are "
        f"{pair.distance:.3f} angstrom apart, {pair.relative:.2f} times the sum of their covalent radii "
        f"(structures below {CLOSE}: {count}); check them, and remove what is not meant",
    )


def _of_portion(structures: Structures) -> Singles:
    """Shortest distance and shortest relative distance of each structure, (S, 2)."""
    least = np.full((len(structures), 2), np.inf, dtype=np.float32)
    all_pairs = _compare_all_pairs(structures)
    for num_atoms in np.unique(structures.num_atoms[all_pairs]).tolist():
        members = np.flatnonzero(all_pairs & (structures.num_atoms == num_atoms))
        for part in np.array_split(members, -(-len(members) * num_atoms // ATOMS_AT_ONCE)):
            least[part] = _of_molecules(structures, part, num_atoms)
    for other in np.flatnonzero(~all_pairs).tolist():
        least[other] = _by_cell_list(structures, other)
    return least


def _compare_all_pairs(structures: Structures) -> NDArray[np.bool_]:
    """Which structures are molecules so small that comparing all pairs is the fastest, (S,)."""
    return ~structures.periodic.any(axis=1) & (structures.num_atoms <= MAX_ATOMS_ALL_PAIRS)


def _of_molecules(structures: Structures, members: Integers, num_atoms: int) -> Singles:
    """Shortest distances in molecules of equal size, (M, 2); float32 is exact to 1e-5 angstrom once they are centred."""
    atoms = structures.offsets[:-1][members][:, None] + np.arange(num_atoms)  # (M, A)
    positions = structures.positions[atoms]
    axes = np.moveaxis(positions - positions.mean(axis=1, keepdims=True), 2, 0).astype(np.float32)
    twice = np.concatenate([axes, axes], axis=2)  # (3, M, 2A), so that shifts are views
    radii = RADII[structures.atomic_numbers[atoms]]
    radii_twice = np.concatenate([radii, radii], axis=1)  # (M, 2A)
    squares, relative = (np.full(atoms.shape, np.inf, dtype=np.float32) for _ in range(2))
    for shift in range(1, num_atoms // 2 + 1):
        other = slice(shift, shift + num_atoms)
        square = _square_distances(twice, num_atoms, other)
        np.minimum(squares, square, out=squares)
        square /= (radii + radii_twice[:, other]) ** 2
        np.minimum(relative, square, out=relative)
    least: Singles = np.sqrt(np.stack([squares.min(axis=1), relative.min(axis=1)], axis=1))
    return least


def _square_distances(twice: Singles, num_atoms: int, other: slice) -> Singles:
    """Squared distances of each atom to the one some places further, (M, A)."""
    total = np.zeros((twice.shape[1], num_atoms), dtype=np.float32)
    for axis in twice:
        difference = axis[:, :num_atoms] - axis[:, other]
        difference *= difference
        total += difference
    return total


def _by_cell_list(structures: Structures, index: int) -> tuple[float, float]:
    """Shortest distances of one structure; the relative one among the pairs that the first successful cutoff finds."""
    receivers, senders, distance = _neighbors(structures, index)
    if not len(distance):
        return np.inf, np.inf
    radii = RADII[structures.atomic_numbers[structures.offsets[index] : structures.offsets[index + 1]]]
    return float(distance.min()), float((distance / (radii[receivers] + radii[senders])).min())


def _neighbors(structures: Structures, index: int) -> tuple[Integers, Integers, Floats]:
    """Receivers, senders and distances (E,) of a structure, up to a cutoff at which there are some."""
    positions = structures.positions[structures.offsets[index] : structures.offsets[index + 1]]
    cell, periodic = structures.cell[index], structures.periodic[index]
    volume = abs(float(np.linalg.det(cell))) if periodic.all() else np.inf
    cutoff = min(FIRST_CUTOFF * np.cbrt(volume / len(positions)), MAX_FIRST_CUTOFF)
    while True:
        receivers, senders, distance = _edges(positions, cell, periodic, float(cutoff))
        if len(distance) or cutoff > MAX_CUTOFF:
            return receivers, senders, distance
        cutoff *= 2


def _edges(positions: Floats, cell: Floats, periodic: NDArray[np.bool_], cutoff: float) -> tuple[Integers, Integers, Floats]:
    if periodic.all():
        calculator = vesin.NeighborList(cutoff=cutoff, full_list=False)
        receivers, senders, distance = calculator.compute(points=positions, box=cell, periodic=True, quantities="ijd")
        return receivers.astype(np.int64), senders.astype(np.int64), distance
    edges = find_edges(np.array([len(positions)]), positions, cell[None], periodic[None], cutoff=cutoff)
    return edges.receivers.astype(np.int64), edges.senders.astype(np.int64), np.linalg.norm(edges.vectors, axis=1)


def _smallest(least: Singles) -> list[int]:
    few = np.argsort(least, kind="stable")[:NUM_REPORTED]
    return [place for place in few.tolist() if np.isfinite(least[place])]


def _closest_pair(structures: Structures, index: int, *, by_column: int) -> ClosePair:
    """The pair of a structure with the least distance (column 0) or relative distance (column 1), in float64."""
    one = structures.take(np.array([index]))
    if _compare_all_pairs(one)[0]:
        receivers, senders = np.triu_indices(len(one.positions), 1)
        distance = np.linalg.norm(one.positions[receivers] - one.positions[senders], axis=1)
    else:
        receivers, senders, distance = _neighbors(one, 0)
    radii = covalent_radii[one.atomic_numbers]
    relative = distance / (radii[receivers] + radii[senders])
    least = int(np.argmin((distance, relative)[by_column]))
    first, second = sorted((int(receivers[least]), int(senders[least])))
    return ClosePair(index, first, second, float(distance[least]), float(relative[least]))
