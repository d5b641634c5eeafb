"""`Structures`: labelled structures as flat columns; there is no Python object per structure.

Legend: S structures, N atoms of all structures together (structure s owns the atoms `offsets[s]:offsets[s+1]`).
Units: eV, angstrom, eV/angstrom, eV/angstrom^3, elementary charges. A missing label is NaN. The arrays may be memory-mapped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Array = NDArray[Any]

ABSENT: Array = np.empty(0)
"""Stands for a column in which everything is missing."""


def _absent() -> Array:
    return ABSENT


@dataclass(frozen=True, eq=False)
class Structures:
    """Labelled structures in columns."""

    num_atoms: Integers  # (S,)
    atomic_numbers: NDArray[np.uint8]  # (N,)
    positions: Floats  # (N, 3) angstrom, not wrapped into the cell
    cell: Floats  # (S, 3, 3) angstrom, rows are the lattice vectors, zeros where there is none
    periodic: NDArray[np.bool_]  # (S, 3)
    energy: Floats = field(default_factory=_absent)  # (S,) eV
    forces: Floats = field(default_factory=_absent)  # (N, 3) eV/angstrom
    stress: Floats = field(default_factory=_absent)  # (S, 3, 3) eV/angstrom^3, symmetric, tension positive
    total_charge: Floats = field(default_factory=_absent)  # (S,) elementary charges
    spin_multiplicity: Floats = field(default_factory=_absent)  # (S,) 2S+1
    dipole: Floats = field(default_factory=_absent)  # (S, 3) e*angstrom
    quadrupole: Floats = field(default_factory=_absent)  # (S, 3, 3) e*angstrom^2, with the trace that the source gives it
    partial_charges: Floats = field(default_factory=_absent)  # (N,) elementary charges
    weight: Floats = field(default_factory=_absent)  # (S,) of the structure in the loss, 1 where nothing else was said
    group: Integers = field(default_factory=_absent)  # (S,) structures of one group stay in one set; each its own by default
    subset: Integers = field(default_factory=_absent)  # (S,) index into `subset_names`
    file: Integers = field(default_factory=_absent)  # (S,) index into `files`
    index_in_file: Integers = field(default_factory=_absent)  # (S,) place of the structure in its file, from 0
    subset_names: tuple[str, ...] = ("",)  # what `config_type` said; "" where it said nothing
    files: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        for name, column in COLUMNS.items():
            if getattr(self, name) is ABSENT:
                num = len(self.atomic_numbers if column.per_atom else self.num_atoms)
                numbered = np.arange(num) if name in ("group", "index_in_file") else column.absent(num)
                object.__setattr__(self, name, numbered)

    def __len__(self) -> int:
        return len(self.num_atoms)

    @cached_property
    def offsets(self) -> Integers:
        """First atom of each structure, and the number of all atoms at the end, (S+1,)."""
        return np.concatenate([[0], np.cumsum(self.num_atoms, dtype=np.int64)])

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        counts = sum(np.bincount(piece.atomic_numbers, minlength=256) for piece in self.pieces())
        return tuple(np.flatnonzero(counts).tolist())

    @cached_property
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

    def has(self, label: str) -> NDArray[np.bool_]:
        """Which structures carry a label completely: all its components, of all their atoms, (S,)."""
        column, values = COLUMNS[label], getattr(self, label)
        if is_constant(values):
            return np.full(len(self), bool(np.isfinite(values[:1]).all()))
        known = np.isfinite(values)
        if known.all():
            return np.ones(len(self), dtype=bool)
        complete = known.reshape(len(known), -1).all(axis=1)
        return np.logical_and.reduceat(complete, self.offsets[:-1]) if column.per_atom else complete

    def place(self, structure: int) -> str:
        """`file:index` of a structure, as messages name it."""
        return f"{self.files[self.file[structure]]}:{self.index_in_file[structure]}"

    def atoms_of(self, chosen: Integers) -> Integers:
        """Indices of the atoms of the chosen structures, in the order of the choice, (sum of num_atoms,)."""
        return ragged_arange(self.offsets[:-1][chosen], self.num_atoms[chosen])

    def take(self, chosen: Integers) -> "Structures":
        """The chosen structures, in the order of the choice."""
        atoms = self.atoms_of(chosen)
        return self.with_columns(lambda name, values: _chosen(values, atoms if COLUMNS[name].per_atom else chosen))

    def slice(self, first: int, last: int) -> "Structures":
        """The structures first to last (exclusive), without copying."""
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        return self.with_columns(lambda name, values: values[begin:end] if COLUMNS[name].per_atom else values[first:last])

    def pieces(self, max_atoms: int = 500_000) -> Iterator["Structures"]:
        """Consecutive structures, without copying, in pieces of at most so many atoms, or of one structure."""
        first = 0
        while first < len(self):
            end = int(np.searchsorted(self.offsets, self.offsets[first] + max_atoms, side="right")) - 1
            last = max(first + 1, end)
            yield self.slice(first, last)
            first = last

    def taken(self, chosen: Integers, max_atoms: int = 500_000) -> Iterator["Structures"]:
        """The chosen structures, in the order of the choice, in copied pieces of about so many atoms."""
        cuts = np.cumsum(self.num_atoms[chosen]) // max_atoms
        for piece in np.split(chosen, np.flatnonzero(np.diff(cuts)) + 1):
            yield self.take(piece)

    def with_columns(self, change: Callable[[str, Array], Array]) -> "Structures":
        """The same structures with every column, given by name and values, changed."""
        columns: dict[str, Any] = {name: change(name, getattr(self, name)) for name in COLUMNS}
        return replace(self, **columns)


@dataclass(frozen=True)
class Column:
    """What a column holds for each structure or each atom."""

    per_atom: bool
    shape: tuple[int, ...]
    dtype: str
    missing: float = np.nan

    def absent(self, num: int) -> Array:
        """A column in which everything is missing; it takes no memory."""
        return np.broadcast_to(np.array(self.missing, dtype=self.dtype), (num, *self.shape))


COLUMNS = {
    "num_atoms": Column(False, (), "int64", 0),
    "atomic_numbers": Column(True, (), "uint8", 0),
    "positions": Column(True, (3,), "float64"),
    "cell": Column(False, (3, 3), "float64"),
    "periodic": Column(False, (3,), "bool", 0),
    "energy": Column(False, (), "float64"),
    "forces": Column(True, (3,), "float64"),
    "stress": Column(False, (3, 3), "float64"),
    "total_charge": Column(False, (), "float64"),
    "spin_multiplicity": Column(False, (), "float64"),
    "dipole": Column(False, (3,), "float64"),
    "quadrupole": Column(False, (3, 3), "float64"),
    "partial_charges": Column(True, (), "float64"),
    "weight": Column(False, (), "float64", 1.0),
    "group": Column(False, (), "int64", 0),
    "subset": Column(False, (), "int64", 0),
    "file": Column(False, (), "int64", 0),
    "index_in_file": Column(False, (), "int64", 0),
}
LABELS = ("energy", "forces", "stress", "total_charge", "spin_multiplicity", "dipole", "quadrupole", "partial_charges")


def is_constant(values: Array) -> bool:
    """Whether a column is one value without memory of its own, as columns are in which everything is missing."""
    return not any(values.strides)


def _chosen(values: Array, chosen: Integers) -> Array:
    """Some rows of a column; what is missing for all stays without memory."""
    if is_constant(values) and len(values):
        return np.broadcast_to(values[0], (len(chosen), *values.shape[1:]))
    taken: Array = values[chosen]
    return taken


def ragged_arange(starts: Integers, counts: Integers) -> Integers:
    """`starts[0], starts[0]+1, ... (counts[0] of them), starts[1], ...`, (sum of counts,)."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    places: Integers = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return places


def concatenate(parts: Sequence[Structures]) -> Structures:
    """All structures of `parts` one after the other; file and subset indices are renumbered, group numbers are not."""
    if len(parts) == 1:
        return parts[0]
    files = _all_names(part.files for part in parts)
    names = _all_names(part.subset_names for part in parts)
    columns = {name: _joined([getattr(part, name) for part in parts]) for name in COLUMNS}
    columns["file"] = np.concatenate([_places(part.files, files)[part.file] for part in parts])
    columns["subset"] = np.concatenate([_places(part.subset_names, names)[part.subset] for part in parts])
    return Structures(**columns, subset_names=tuple(names), files=tuple(files))


def _all_names(lists: Iterable[tuple[str, ...]]) -> dict[str, int]:
    """Each name of some lists with its number; most lists are the same one."""
    names = dict.fromkeys(name for some in dict.fromkeys(lists) for name in some)
    return {name: number for number, name in enumerate(names)}


def _places(names: tuple[str, ...], numbers: Mapping[str, int]) -> Integers:
    """The numbers of some names, (names,)."""
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _joined(columns: Sequence[Array]) -> Array:
    filled = [values for values in columns if len(values)]
    if filled and all(is_constant(values) and np.array_equal(values[0], filled[0][0], equal_nan=True) for values in filled):
        return np.broadcast_to(filled[0][0], (sum(map(len, columns)), *filled[0].shape[1:]))
    return np.concatenate(columns)


def sum_of_constants(structures: Structures, by_element: Floats) -> Floats:
    """The sum of a constant of each atom's element over the structures, float64, (S,); `by_element` by atomic number."""
    pieces = (np.add.reduceat(by_element[piece.atomic_numbers], piece.offsets[:-1]) for piece in structures.pieces())
    return np.concatenate(list(pieces))


def subset_factors(structures: Structures, subset_weights: Mapping[str, float]) -> Floats:
    """The weight of each subset name: its own, or that of the source before its slash, or 1."""
    names = structures.subset_names
    return np.array([subset_weights.get(name, subset_weights.get(name.partition("/")[0], 1.0)) for name in names])
