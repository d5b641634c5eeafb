"""Which atoms see which: the edges of structures for a cutoff.

Legend: S structures, N atoms, E edges of all structures. An edge is receiver <- sender with the vector
`r_sender + shift - r_receiver`, shorter than the cutoff; images of an atom with itself are included, and there is no cap on
the number. Edges are sorted by receiver, then sender, then lattice shift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import vesin
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ALL_PAIRS_LIMIT = 200  # atoms of a molecule up to which comparing all pairs at once beats a cell list
PAIRS_AT_ONCE = 50_000  # so few that the arrays of a comparison stay in the cache: ten times as fast as millions


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of structures, one after the other; atoms and reverse edges are counted within each structure."""

    num_edges: Integers  # (S,)
    receivers: NDArray[np.int32]  # (E,)
    senders: NDArray[np.int32]  # (E,)
    vectors: Floats  # (E, 3) angstrom
    reverse: NDArray[np.int32]  # (E,) place of the edge sender <- receiver among its structure's edges


def find_edges(num_atoms: Integers, positions: Floats, cell: Floats, periodic: NDArray[np.bool_], *, cutoff: float) -> Edges:
    """Edges of structures given by columns (S,), (N, 3) angstrom, (S, 3, 3) angstrom, (S, 3), for a cutoff in angstrom.

    The cutoff may be infinite where nothing is periodic: all pairs of atoms of a structure then are edges.
    """
    offsets = np.concatenate([[0], np.cumsum(num_atoms)])
    parts = []
    for begin, end, is_molecules in _portions(num_atoms, periodic, limit=ALL_PAIRS_LIMIT if isfinite(cutoff) else inf):
        atoms = positions[offsets[begin] : offsets[end]]
        if is_molecules:
            parts.append(_all_pairs(num_atoms[begin:end], atoms, cutoff))
        else:
            parts.append(_cell_list(atoms, cell[begin], periodic[begin], cutoff))
    names = ("num_edges", "receivers", "senders", "vectors", "reverse")
    return Edges(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _portions(num_atoms: Integers, periodic: NDArray[np.bool_], *, limit: float) -> Iterator[tuple[int, int, bool]]:
    """Runs begin:end of small molecules whose pairs fit into memory, and all other structures one by one."""
    small = ~periodic.any(axis=1) & (num_atoms <= limit)
    begin = pairs = 0
    for structure, (is_small, count) in enumerate(zip(small.tolist(), (num_atoms**2).tolist(), strict=True)):
        if begin < structure and (not is_small or pairs + count > PAIRS_AT_ONCE):
            yield begin, structure, True
            begin, pairs = structure, 0
        if is_small:
            pairs += count
        else:
            yield structure, structure + 1, False
            begin = structure + 1
    if begin < len(num_atoms):
        yield begin, len(num_atoms), True


def _all_pairs(num_atoms: Integers, positions: Floats, cutoff: float) -> Edges:
    """Edges of molecules by comparing all pairs; no loop over structures, and no sorting, as pairs come in order."""
    structure = np.repeat(np.arange(len(num_atoms)), num_atoms)  # (N,)
    partners = num_atoms[structure]  # atoms of each atom's molecule, (N,)
    first_atom = (np.cumsum(num_atoms) - num_atoms)[structure]  # (N,)
    first_pair = np.cumsum(partners) - partners  # (N,) pair (i, j) is number first_pair[i] + place of j in its molecule
    receiver = np.repeat(np.arange(len(partners)), partners)
    sender = np.arange(len(receiver)) - (first_pair - first_atom)[receiver]
    vectors = positions[sender] - positions[receiver]
    near = (np.einsum("ij,ij->i", vectors, vectors) < cutoff**2) & (sender != receiver)
    place_of_edge = np.cumsum(near) - 1  # of each pair that is one
    receiver, sender = receiver[near], sender[near]
    num_edges = np.bincount(structure[receiver], minlength=len(num_atoms))
    first_edge = (np.cumsum(num_edges) - num_edges)[structure[receiver]]
    reverse = place_of_edge[first_pair[sender] + receiver - first_atom[receiver]]
    return Edges(
        num_edges,
        (receiver - first_atom[receiver]).astype(np.int32),
        (sender - first_atom[sender]).astype(np.int32),
        vectors[near],
        (reverse - first_edge).astype(np.int32),
    )


def _cell_list(positions: Floats, cell: Floats, periodic: NDArray[np.bool_], cutoff: float) -> Edges:
    """Edges of one structure by vesin's cell list."""
    box = np.where(periodic[:, None], cell, 0.0)  # a vector along which the structure is not periodic means nothing
    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True)
    receiver, sender, shift = calculator.compute(points=positions, box=_completed(box), periodic=periodic, quantities="ijS")
    receiver, sender, shift = (np.asarray(part, dtype=np.int64) for part in (receiver, sender, shift))
    vectors = positions[sender] - positions[receiver] + shift @ box
    near = np.einsum("ij,ij->i", vectors, vectors) < cutoff**2
    return _sorted_edges(receiver[near], sender[near], shift[near], vectors[near])


def _completed(box: Floats) -> Floats:
    """The box with unit vectors at right angles to the others in the place of its zero rows."""
    missing = ~box.any(axis=1)
    complement = np.linalg.svd(box)[2][3 - int(missing.sum()) :]
    return np.concatenate([box[~missing], complement])[np.argsort(np.argsort(missing, kind="stable"), kind="stable")]


def _sorted_edges(receiver: Integers, sender: Integers, shift: Integers, vectors: Floats) -> Edges:
    """Edges of one structure in order, with their reverse edges."""
    order = np.lexsort((*shift.T[::-1], sender, receiver))
    # Both orders walk through the same keys, one by (receiver, sender, shift), the other by those of the reverse edge.
    mirrored = np.lexsort((*-shift.T[::-1], receiver, sender))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    reverse = np.empty(len(order), dtype=np.int32)
    reverse[rank[mirrored]] = np.arange(len(order))
    return Edges(
        np.array([len(order)]),
        receiver[order].astype(np.int32),
        sender[order].astype(np.int32),
        vectors[order],
        reverse,
    )
