"""Samples of structures: portions that bound the memory, evenly spaced samples, and ensembles of one molecule or cell.

Legend: S structures, C conformations of an ensemble, A atoms of each of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modelforge.data.audit.fingerprints import Hashes, element_sequences
from modelforge.data.structures import Floats, Integers, Structures

MAX_ATOMS_AT_ONCE = 500_000
MAX_ENSEMBLES = 20
MAX_CONFORMATIONS = 400  # of an ensemble
MAX_SAMPLED = 1_000  # conformations of all ensembles
MAX_SAMPLED_ATOMS = 12_000  # of all ensembles


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Conformations of the same elements in the same order, all with energy and forces."""

    atomic_numbers: Integers  # (A,)
    positions: Floats  # (C, A, 3) angstrom
    forces: Floats  # (C, A, 3) eV/angstrom
    energy: Floats  # (C,) eV
    stress: Floats  # (C, 3, 3) eV/angstrom^3
    cell: Floats  # (C, 3, 3) angstrom, unit vectors where there is no periodicity
    periodic: NDArray[np.bool_]  # (3,)

    def __len__(self) -> int:
        return len(self.energy)

    def every(self, step: int) -> "Ensemble":
        """The first conformation and each that is a multiple of `step` after it."""
        kept = slice(None, None, step)
        return replace(
            self,
            positions=self.positions[kept],
            forces=self.forces[kept],
            energy=self.energy[kept],
            stress=self.stress[kept],
            cell=self.cell[kept],
        )

    @property
    def num_atoms(self) -> int:
        """Atoms of each conformation."""
        return len(self.atomic_numbers)

    @property
    def is_periodic(self) -> bool:
        """Whether it is periodic in any direction."""
        return bool(self.periodic.any())


def portions(structures: Structures, chosen: Integers | None) -> Iterator[tuple[Integers, Structures]]:
    """The chosen structures (all by default) in portions of bounded size, each with its indices."""
    if chosen is None:
        first = 0
        for piece in structures.pieces(MAX_ATOMS_AT_ONCE):
            yield np.arange(first, first + len(piece)), piece
            first += len(piece)
        return
    ends = np.cumsum(structures.num_atoms[chosen])
    for part in np.split(chosen, np.flatnonzero(np.diff(ends // MAX_ATOMS_AT_ONCE)) + 1):
        if len(part):
            yield part, structures.take(part)


def evenly_spaced(num: int, *, at_most: int) -> Integers:
    """Indices 0..num-1, or `at_most` of them at equal distances."""
    return np.arange(num) if num <= at_most else np.linspace(0, num - 1, at_most).astype(np.int64)


def sample(structures: Structures, chosen: Integers | None, *, at_most: int, max_atoms: int) -> Structures:
    """Evenly spaced structures among the chosen ones, few enough to have about `max_atoms` atoms."""
    indices = np.arange(len(structures)) if chosen is None else chosen
    if not len(indices):
        return structures.take(indices)
    mean_atoms = float(np.mean(structures.num_atoms[indices]))
    return structures.take(indices[evenly_spaced(len(indices), at_most=max(1, min(at_most, int(max_atoms / mean_atoms))))])


def ensembles(structures: Structures, chosen: Integers | None) -> list[Ensemble]:
    """The largest ensembles among the chosen structures, each thinned out to runs of two at equal distances.

    Runs of two keep what a trajectory offers: frames next to each other are nearly identical.
    """
    keys, indices = [], []
    for members, piece in portions(structures, chosen):
        has_labels = np.isfinite(piece.energy) & np.isfinite(piece.forces[piece.offsets[:-1], 0])
        keys.append(element_sequences(piece)[has_labels])
        indices.append(members[has_labels])
    if not indices or not (candidates := np.concatenate(indices)).size:
        return []
    found, num_atoms = [], 0
    for group in _largest_groups(np.concatenate(keys), candidates):
        ensemble = _ensemble(structures, group[_thinned(len(group), structures.num_atoms[group[0]])])
        num_atoms += len(ensemble) * ensemble.num_atoms
        found.append(ensemble)
        if sum(map(len, found)) >= MAX_SAMPLED or num_atoms >= MAX_SAMPLED_ATOMS:
            break
    return found


def _largest_groups(keys: Hashes, indices: Integers) -> list[Integers]:
    """Indices by key, of the keys that occur most often and more than once."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
    sizes = np.diff(np.append(starts, len(order)))
    largest = np.argsort(-sizes, kind="stable")[:MAX_ENSEMBLES]
    return [indices[order[starts[g] : starts[g] + sizes[g]]] for g in largest.tolist() if sizes[g] > 1]


def _thinned(num: int, num_atoms: np.int64) -> Integers:
    limit = max(2, min(MAX_CONFORMATIONS, MAX_SAMPLED_ATOMS // int(num_atoms)))
    if num <= limit:
        return np.arange(num)
    firsts = evenly_spaced(num - 1, at_most=limit // 2)
    return np.unique(np.concatenate([firsts, firsts + 1]))


def _ensemble(structures: Structures, group: Integers) -> Ensemble:
    part = structures.take(group)
    shape = (len(group), int(part.num_atoms[0]), 3)
    forces = part.forces.reshape(shape)
    whole = np.isfinite(forces).all(axis=(1, 2))
    return Ensemble(
        part.atomic_numbers[: shape[1]].astype(np.int64),
        part.positions.reshape(shape)[whole],
        forces[whole],
        part.energy[whole],
        part.stress[whole],
        _completed(np.where(part.periodic[:, :, None], part.cell, 0.0)[whole], part.periodic[0]),
        part.periodic[0],
    )


def _completed(cells: Floats, periodic: NDArray[np.bool_]) -> Floats:
    """Cells with unit vectors at right angles to the others where they are not periodic, (C, 3, 3)."""
    if periodic.all():
        return cells
    completed = cells.copy()
    completed[:, ~periodic] = np.linalg.svd(cells)[2][:, int(periodic.sum()) :]
    return completed
