"""Triples: two edges that one atom receives, for the angles between its neighbours.

Both edges are shorter than a cutoff, and each unordered pair of edges comes once. Triples are sorted by receiver, then by the
elements of the two senders, the lighter one first, so that those of one pair of elements stand together.

N atoms, E edges, M triples of all structures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

ELEMENT_LIMIT = 256  # above every atomic number


@dataclass(frozen=True, eq=False)
class Triples:
    """Pairs of edges that one atom receives; edges are counted from the first one that this atom receives."""

    triples_of_atom: Integers  # (N,)
    edges: Integers  # (M, 2)


def find_triples(edges_of_atom: Integers, sender_numbers: NDArray[np.uint8], is_near: NDArray[np.bool_]) -> Triples:
    """All triples of the edges that are near enough, (E,), given how many edges each atom receives, (N,).

    `sender_numbers` (E,) are atomic numbers; edges are sorted by receiver.
    """
    near = np.flatnonzero(is_near)
    receiver = np.repeat(np.arange(len(edges_of_atom)), edges_of_atom)[near]
    by_element = np.lexsort((sender_numbers[near], receiver))  # stable: equal elements stay in the order of the edges
    near, receiver = near[by_element], receiver[by_element]
    num_near = np.bincount(receiver, minlength=len(edges_of_atom))  # (N,)
    end_of_atom = np.cumsum(num_near)[receiver]
    num_later = end_of_atom - np.arange(len(near)) - 1  # partners of each edge that come after it
    first = np.repeat(np.arange(len(near)), num_later)  # (M,) places in the list of near edges
    second = first + 1 + _counting_up(num_later)
    numbers = sender_numbers[near].astype(np.int64)
    key = (receiver[first] * ELEMENT_LIMIT + numbers[first]) * ELEMENT_LIMIT + numbers[second]
    order = np.argsort(key, kind="stable")
    first_edge = np.cumsum(edges_of_atom) - edges_of_atom
    local = near - first_edge[receiver]
    return Triples(num_near * (num_near - 1) // 2, np.stack([local[first[order]], local[second[order]]], axis=1))


def _counting_up(counts: Integers) -> Integers:
    """0, 1, ... below each count, one after the other."""
    begin: Integers = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(begin, counts)
