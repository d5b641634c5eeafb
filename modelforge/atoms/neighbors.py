"""Which atoms see which: the edges of structures for a cutoff.

Legend: S structures, N atoms, E edges of all structures. An edge is receiver <- sender with the vector
`r_sender + shift - r_receiver`, shorter than the cutoff; images of an atom with itself are included, and there is no cap on
the number. Edges are sorted by receiver, then sender, then lattice shift.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import vesin
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ALL_PAIRS_LIMIT = 200  # atoms of a molecule up to which comparing all pairs at once beats a cell list
PAIRS_AT_ONCE = 4_000_000  # bounds the memory of that comparison


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of structures, one after the other; atoms and reverse edges are counted within each structure."""

    num_edges: Integers  # (S,)
    receivers: NDArray[np.int32]  # (E,)
    senders: NDArray[np.int32]  # (E,)
    vectors: Floats  # (E, 3) angstrom
    reverse: NDArray[np.int32]  # (E,) place of the edge sender <- receiver among its structure's edges


@dataclass(frozen=True, eq=False)
class _Pairs:
    structure: Integers  # (E,)
    receiver: Integers  # (E,) atom of its structure
    sender: Integers  # (E,) atom of its structure
    shift: NDArray[np.int32]  # (E, 3) whole lattice vectors
    vectors: Floats  # (E, 3)


def find_edges(num_atoms: Integers, positions: Floats, cell: Floats, periodic: NDArray[np.bool_], *, cutoff: float) -> Edges:
    """Edges of structures given by columns (S,), (N, 3) angstrom, (S, 3, 3) angstrom, (S, 3), for a cutoff in angstrom."""
    offsets = np.concatenate([[0], np.cumsum(num_atoms)])
    parts = []
    for begin, end, is_molecules in _portions(num_atoms, periodic):
        atoms = positions[offsets[begin] : offsets[end]]
        if is_molecules:
            pairs = _all_pairs(num_atoms[begin:end], atoms, cutoff)
        else:
            pairs = _cell_list(atoms, cell[begin], periodic[begin], cutoff)
        parts.append(_sorted_edges(pairs, num_structures=end - begin))
    names = ("num_edges", "receivers", "senders", "vectors", "reverse")
    return Edges(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _portions(num_atoms: Integers, periodic: NDArray[np.bool_]) -> Iterator[tuple[int, int, bool]]:
    """Runs begin:end of small molecules whose pairs fit into memory, and all other structures one by one."""
    small = ~periodic.any(axis=1) & (num_atoms <= ALL_PAIRS_LIMIT)
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


def _all_pairs(num_atoms: Integers, positions: Floats, cutoff: float) -> _Pairs:
    """Pairs within molecules by comparing all; no loop over structures."""
    partners = np.repeat(num_atoms, num_atoms)  # atoms of each atom's molecule, (N,)
    first_atom = np.repeat(np.cumsum(num_atoms) - num_atoms, num_atoms)  # (N,)
    receiver = np.repeat(np.arange(len(partners)), partners)
    sender = np.arange(len(receiver)) - np.repeat(np.cumsum(partners) - partners - first_atom, partners)
    vectors = positions[sender] - positions[receiver]
    near = (np.einsum("ij,ij->i", vectors, vectors) < cutoff**2) & (sender != receiver)
    receiver, sender = receiver[near], sender[near]
    structure = np.repeat(np.arange(len(num_atoms)), num_atoms)
    return _Pairs(
        structure[receiver],
        receiver - first_atom[receiver],
        sender - first_atom[sender],
        np.zeros((len(receiver), 3), dtype=np.int32),
        vectors[near],
    )


def _cell_list(positions: Floats, cell: Floats, periodic: NDArray[np.bool_], cutoff: float) -> _Pairs:
    """Pairs of one structure by vesin's cell list."""
    box = np.where(periodic[:, None], cell, 0.0)  # a vector along which the structure is not periodic means nothing
    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True)
    receiver, sender, shift = calculator.compute(points=positions, box=_completed(box), periodic=periodic, quantities="ijS")
    receiver, sender, shift = (np.asarray(part, dtype=np.int64) for part in (receiver, sender, shift))
    vectors = positions[sender] - positions[receiver] + shift @ box
    near = np.einsum("ij,ij->i", vectors, vectors) < cutoff**2
    structure = np.zeros(int(near.sum()), dtype=np.int64)
    return _Pairs(structure, receiver[near], sender[near], shift[near].astype(np.int32), vectors[near])


def _completed(box: Floats) -> Floats:
    """The box with unit vectors at right angles to the others in the place of its zero rows."""
    missing = ~box.any(axis=1)
    complement = np.linalg.svd(box)[2][3 - int(missing.sum()) :]
    return np.concatenate([box[~missing], complement])[np.argsort(np.argsort(missing, kind="stable"), kind="stable")]


def _sorted_edges(pairs: _Pairs, *, num_structures: int) -> Edges:
    structure, receiver, sender, shift = pairs.structure, pairs.receiver, pairs.sender, pairs.shift
    order = np.lexsort((*shift.T[::-1], sender, receiver, structure))
    mirrored = np.lexsort((*-shift.T[::-1], receiver, sender, structure))
    # Both orders walk through the same keys, one by (receiver, sender, shift), the other by those of the reverse edge.
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    reverse = np.empty(len(order), dtype=np.int64)
    reverse[rank[mirrored]] = np.arange(len(order))
    num_edges = np.bincount(structure, minlength=num_structures)
    first_edge = np.cumsum(num_edges) - num_edges
    return Edges(
        num_edges,
        receiver[order].astype(np.int32),
        sender[order].astype(np.int32),
        pairs.vectors[order],
        (reverse - first_edge[structure[order]]).astype(np.int32),
    )
