"""Fingerprints: 64-bit numbers that are equal for structures of equal atoms.

Two different structures share one by chance once in 2^64 pairs: among a million structures against another million the
expected number of false matches is 5e-8.

Legend: S structures, N atoms of all of them.
"""

import numpy as np
from numpy.typing import NDArray

from modelforge.data.structures import Floats, Structures

Hashes = NDArray[np.uint64]

SAME_PLACE = 1e-6  # angstrom; numbers that a file gives twice differ by less, after any conversion of units
NUM_CODES = 256  # more than there are elements


def compositions(structures: Structures) -> Hashes:
    """Equal for structures with equally many atoms of each element, periodic in the same directions, (S,)."""
    return _with_periodicity(_sums(_mixed(structures.atomic_numbers.astype(np.uint64)), structures), structures)


def element_sequences(structures: Structures) -> Hashes:
    """Equal for structures with the same elements in the same order, periodic in the same directions, (S,)."""
    return _with_periodicity(_sums(_mixed(_codes(structures)), structures), structures)


def exact_fingerprints(structures: Structures) -> Hashes:
    """Equal for structures with the same atoms in the same order, in the same places of the same cell, (S,)."""
    atoms = _codes(structures)
    for axis in range(3):
        atoms = _mixed(atoms + _rounded(structures.positions[:, axis]))
    cells = np.zeros(len(structures), dtype=np.uint64)
    periodic_cell = np.where(structures.periodic[:, :, None], structures.cell, 0.0).reshape(-1, 9)
    for component in range(9):
        cells = _mixed(cells + _rounded(periodic_cell[:, component]))
    return _with_periodicity(_sums(_mixed(atoms), structures) + cells, structures)


def _codes(structures: Structures) -> Hashes:
    """A number for each element and place of an atom in its structure, (N,)."""
    place = np.arange(len(structures.atomic_numbers)) - np.repeat(structures.offsets[:-1], structures.num_atoms)
    return (place * NUM_CODES).astype(np.uint64) + structures.atomic_numbers.astype(np.uint64)


def _with_periodicity(hashes: Hashes, structures: Structures) -> Hashes:
    return _mixed(hashes + structures.periodic @ np.array([1, 2, 4], dtype=np.uint64))


def _rounded(lengths: Floats) -> Hashes:
    return np.rint(lengths / SAME_PLACE).astype(np.int64).view(np.uint64)


def _sums(terms: Hashes, structures: Structures) -> Hashes:
    return np.add.reduceat(terms, structures.offsets[:-1])


def _mixed(numbers: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the input changes half of the output's."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
