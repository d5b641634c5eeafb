"""`Structures`: labelled structures as flat columns; there is no Python object per structure.

Legend: S structures, N atoms of all structures together (structure s owns the atoms `offsets[s]:offsets[s+1]`).
Units: eV, angstrom, eV/angstrom, eV/angstrom^3. A missing label is NaN.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Structures:
    """Labelled structures in columns."""

    num_atoms: Integers  # (S,)
    atomic_numbers: Integers  # (N,)
    positions: Floats  # (N, 3) angstrom, not wrapped into the cell
    cell: Floats  # (S, 3, 3) angstrom, rows are the lattice vectors, zeros where there is none
    periodic: NDArray[np.bool_]  # (S, 3)
    energy: Floats  # (S,) eV
    forces: Floats  # (N, 3) eV/angstrom
    stress: Floats  # (S, 3, 3) eV/angstrom^3, symmetric, tension positive
    group: Integers  # (S,) structures of one group stay in one set of a split
    subset: Integers  # (S,) index into `subset_names`
    file: Integers  # (S,) index into `files`
    index_in_file: Integers  # (S,) place of the structure in its file, from 0
    subset_names: tuple[str, ...] = ("",)  # what `config_type` said; "" where it said nothing
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.num_atoms)

    @property
    def offsets(self) -> Integers:
        """First atom of each structure, and the number of all atoms at the end, (S+1,)."""
        return np.concatenate([[0], np.cumsum(self.num_atoms)])

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(np.flatnonzero(np.bincount(self.atomic_numbers)).tolist())

    @property
    def has_energy(self) -> NDArray[np.bool_]:
        """Which structures carry an energy, (S,)."""
        return np.isfinite(self.energy)

    @property
    def has_force(self) -> NDArray[np.bool_]:
        """Which atoms carry a force, (N,)."""
        return np.asarray(np.isfinite(self.forces).all(axis=1))

    @property
    def has_stress(self) -> NDArray[np.bool_]:
        """Which structures carry a stress, (S,)."""
        return np.asarray(np.isfinite(self.stress).all(axis=(1, 2)))

    def place(self, structure: int) -> str:
        """`file:index` of a structure, as messages name it."""
        return f"{self.files[self.file[structure]]}:{self.index_in_file[structure]}"

    def atoms_of(self, chosen: Integers) -> Integers:
        """Indices of the atoms of the chosen structures, in the order of the choice, (sum of num_atoms,)."""
        return ragged_arange(self.offsets[:-1][chosen], self.num_atoms[chosen])

    def slice(self, first: int, last: int) -> "Structures":
        """The structures first to last (exclusive), without copying."""
        begin, end = int(self.num_atoms[:first].sum()), int(self.num_atoms[:last].sum())
        columns = {name: getattr(self, name)[first:last] for name in STRUCTURE_COLUMNS}
        columns |= {name: getattr(self, name)[begin:end] for name in ATOM_COLUMNS}
        return replace(self, **columns)

    def pieces(self, max_atoms: int = 500_000) -> Iterator["Structures"]:
        """Consecutive structures, without copying, in pieces of at most so many atoms, or of one structure."""
        offsets = self.offsets
        first = 0
        while first < len(self):
            last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + max_atoms, side="right")) - 1)
            yield self.slice(first, last)
            first = last

    def take(self, chosen: Integers) -> "Structures":
        """The chosen structures, in the order of the choice."""
        atoms = self.atoms_of(chosen)
        columns = {name: getattr(self, name)[chosen] for name in STRUCTURE_COLUMNS}
        columns |= {name: getattr(self, name)[atoms] for name in ATOM_COLUMNS}
        return replace(self, **columns)


ATOM_COLUMNS = ("atomic_numbers", "positions", "forces")
STRUCTURE_COLUMNS = tuple(
    field.name for field in fields(Structures) if field.name not in (*ATOM_COLUMNS, "subset_names", "files")
)


def ragged_arange(starts: Integers, counts: Integers) -> Integers:
    """`starts[0], starts[0]+1, ... (counts[0] of them), starts[1], ...`, (sum of counts,)."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places: Integers = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return places


def concatenate(parts: Sequence[Structures]) -> Structures:
    """All structures of `parts` one after the other; file and subset indices are renumbered."""
    files = tuple(dict.fromkeys(name for part in parts for name in part.files))
    names = tuple(dict.fromkeys(name for part in parts for name in part.subset_names))
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in STRUCTURE_COLUMNS}
    columns |= {name: np.concatenate([getattr(part, name) for part in parts]) for name in ATOM_COLUMNS}
    columns["file"] = np.concatenate([np.array([files.index(f) for f in part.files], int)[part.file] for part in parts])
    columns["subset"] = np.concatenate(
        [np.array([names.index(n) for n in part.subset_names], int)[part.subset] for part in parts]
    )
    return Structures(**columns, subset_names=names, files=files)
