"""Structures that occur twice: exactly, atom for atom, and nearly, up to rotation, shift, mirror image and numbering.

Near duplicates are looked for among structures of one composition: outlines are projected onto the directions in which they
vary most, which can only bring them nearer, looked up in a k-d tree, and what is found is compared atom by atom.

Legend: M structures of one composition in the set that is searched in, W structures that are looked for, C candidate pairs,
A atoms of a structure, K distances of an atom.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from modelforge.data.audit.fingerprints import Hashes, compositions, exact_fingerprints
from modelforge.data.audit.sampling import evenly_spaced, portions
from modelforge.data.audit.shape import NUM_NEIGHBORS, Singles, assigned_difference, kinds_of, outlines, surroundings
from modelforge.data.structures import Floats, Integers, Structures

SAME_SHAPE = 0.02  # angstrom, root mean square over distances
NUM_DIRECTIONS = 12  # of the projection
NUM_FITTED = 200  # structures from which the directions come
NUM_CANDIDATES = 4  # nearest projections that are compared in full
MIN_WANTED, MAX_PAIRS = 5_000, 1_000_000_000
"""Near duplicates are looked for in an evenly spaced sample where structures times wanted ones of a composition are more than
`MAX_PAIRS`: one query among a million conformations takes up to 4 ms, as 0.02 angstrom is not small against thermal motion."""
NUMBERS_AT_ONCE = 4_000_000  # bounds the memory
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
MAX_CRYSTALS = 50_000  # in one composition: their neighbours are found one by one, at 0.3 ms each


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which of the structures looked for occur in a set, or in their own set before them."""

    exact: Integers  # structures that occur exactly
    near: Integers  # structures that occur nearly, exact ones included
    partner: Integers  # for each of `near`, one that it resembles
    num_searched: int  # structures for which near duplicates were looked for


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of the structures of a data set; nothing is copied."""

    structures: Structures
    indices: Integers

    def __len__(self) -> int:
        return len(self.indices)


def duplicates_across(searched: Selection, others: Selection) -> Duplicates:
    """Structures of `others` that are in `searched` too."""
    is_there = np.isin(_of_all(exact_fingerprints, others), _of_all(exact_fingerprints, searched))
    return _with_near(searched, others, others.indices[is_there], within=False)


def duplicates_within(searched: Selection) -> Duplicates:
    """Structures that occur earlier in the same selection; of very many conformations a sample is looked for."""
    first = np.unique(_of_all(exact_fingerprints, searched), return_index=True)[1]
    again = np.setdiff1d(np.arange(len(searched)), first)
    return _with_near(searched, searched, searched.indices[again], within=True)


def _with_near(searched: Selection, others: Selection, exact: Integers, *, within: bool) -> Duplicates:
    pairs, num_searched = [np.zeros((0, 2), dtype=np.int64)], 0
    for members, all_wanted in _by_composition(searched, others):
        limit = max(MIN_WANTED, MAX_PAIRS // len(members))
        wanted = all_wanted[evenly_spaced(len(all_wanted), at_most=limit)]
        num_searched += len(wanted)
        pairs.append(_near_pairs(searched.structures, members, others.structures, wanted, within=within))
    found = np.concatenate(pairs)
    near, place = np.unique(found[:, 0], return_index=True)
    return Duplicates(exact, near, found[place, 1], num_searched)


def _by_composition(searched: Selection, others: Selection) -> Iterator[tuple[Integers, Integers]]:
    """Indices of structures, and of others, that have the same composition and periodicity."""
    keys, members = _sorted_by_composition(searched)
    other_keys, wanted = _sorted_by_composition(others)
    common = np.intersect1d(keys, other_keys)
    bounds = [np.searchsorted(some, common, side=side) for some in (keys, other_keys) for side in SIDES]
    for begin, end, other_begin, other_end in np.stack(bounds, axis=1).tolist():
        first = members[begin]
        is_crystal = bool(searched.structures.periodic[first].any())
        lone_atom = searched.structures.num_atoms[first] == 1 and not is_crystal
        if not lone_atom and not (is_crystal and end - begin > MAX_CRYSTALS):
            yield members[begin:end], wanted[other_begin:other_end]


def _sorted_by_composition(selection: Selection) -> tuple[Hashes, Integers]:
    keys = _of_all(compositions, selection)
    order = np.argsort(keys, kind="stable")
    return keys[order], selection.indices[order]


def _near_pairs(structures: Structures, members: Integers, others: Structures, wanted: Integers, *, within: bool) -> Integers:
    """Pairs of the index of a wanted structure and of a member that it nearly equals, (C, 2)."""
    if within and len(members) == 1:
        return np.zeros((0, 2), dtype=np.int64)
    centre, directions = _directions(_outlines_of(structures, members[evenly_spaced(len(members), at_most=NUM_FITTED)]))
    tree = cKDTree(_projected(structures, members, centre, directions))
    reach = SAME_SHAPE * float(np.sqrt(len(centre)))
    num = min(NUM_CANDIDATES + within, len(members))
    _, places = tree.query(_projected(others, wanted, centre, directions), k=np.arange(1, num + 1), distance_upper_bound=reach)
    rows, columns = np.nonzero(places < len(members))
    pairs = np.stack([wanted[rows], members[places[rows, columns]]], axis=1)
    if within:
        pairs = pairs[pairs[:, 1] < pairs[:, 0]]
    if not len(pairs):
        return pairs
    parts = np.array_split(pairs, -(-len(pairs) // _portion_size(structures, members)))
    return np.concatenate([part[_are_alike(structures, others, part)] for part in parts])


def _are_alike(structures: Structures, others: Structures, pairs: Integers) -> Integers:
    """Which pairs (C, 2) have the same surroundings, atom by atom."""
    wanted, members = others.take(pairs[:, 0]), structures.take(pairs[:, 1])
    first, second, kinds = surroundings(wanted), surroundings(members), kinds_of(members)
    numbered_alike = _root_mean_square(first - second) < SAME_SHAPE
    outlines_alike = _root_mean_square(outlines(first, kinds) - outlines(second, kinds)) < SAME_SHAPE
    for pair in np.flatnonzero(outlines_alike & ~numbered_alike).tolist():
        numbered_alike[pair] = assigned_difference(first[pair], second[pair], kinds) < SAME_SHAPE
    return np.flatnonzero(numbered_alike)


def _directions(sample: Singles) -> tuple[Floats, Floats]:
    """Mean of outlines (M, A * K) and the orthonormal directions in which they vary most."""
    centre = sample.mean(axis=0, dtype=np.float64)
    right = np.linalg.svd(sample - centre, full_matrices=False)[2]
    return centre, right[:NUM_DIRECTIONS].T


def _projected(structures: Structures, members: Integers, centre: Floats, directions: Floats) -> Floats:
    parts = np.array_split(members, -(-len(members) // _portion_size(structures, members)))
    return np.concatenate([(_outlines_of(structures, part) - centre) @ directions for part in parts])


def _outlines_of(structures: Structures, members: Integers) -> Singles:
    part = structures.take(members)
    return outlines(surroundings(part), kinds_of(part))


def _portion_size(structures: Structures, members: Integers) -> int:
    num_atoms = int(structures.num_atoms[members[0]])
    return max(1, NUMBERS_AT_ONCE // (num_atoms * max(num_atoms, NUM_NEIGHBORS)))


def _root_mean_square(difference: Singles) -> Floats:
    squares = (difference.reshape(len(difference), -1) ** 2).mean(axis=1, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def _of_all(fingerprints: Callable[[Structures], Hashes], selection: Selection) -> Hashes:
    """Fingerprints of all structures of a selection in bounded memory, (S,)."""
    pieces = portions(selection.structures, selection.indices)
    return np.concatenate([np.zeros(0, dtype=np.uint64), *(fingerprints(piece) for _, piece in pieces)])
