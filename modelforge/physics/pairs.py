"""Sums over pairs of atoms: what a fixed energy that depends on distances gives for structures.

Legend: S structures, N atoms of all of them, P pairs. A pair stands for itself and its mirror image, so each counts once; an
atom and its own periodic image are a pair like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from modelforge.atoms.neighbors import find_edges
from modelforge.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Arrangements(Protocol):
    """What a fixed energy has to know about structures; `data.structures.Structures` has it."""

    @property
    def num_atoms(self) -> Integers:
        """(S,)."""

    @property
    def atomic_numbers(self) -> NDArray[np.uint8]:
        """(N,)."""

    @property
    def positions(self) -> Floats:
        """(N, 3) angstrom."""

    @property
    def cell(self) -> Floats:
        """(S, 3, 3) angstrom."""

    @property
    def periodic(self) -> NDArray[np.bool_]:
        """(S, 3)."""

    def place(self, structure: int) -> str:
        """How messages name a structure."""

    def pieces(self, max_atoms: int) -> Iterator["Arrangements"]:
        """Consecutive structures in pieces of at most so many atoms, or of one structure."""


@dataclass(frozen=True, eq=False)
class FixedEnergy:
    """A fixed energy of structures with its derivatives, float64; the stress is NaN where a structure has no volume."""

    energy: Floats  # (S,) eV
    forces: Floats  # (N, 3) eV/angstrom
    stress: Floats  # (S, 3, 3) eV/angstrom^3, tension positive


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of atoms within a cutoff."""

    first: Tensor  # (P,)
    second: Tensor  # (P,)
    structure: Tensor  # (P,)
    vectors: Tensor  # (P, 3) angstrom, from the first atom to the second
    distances: Tensor  # (P,) angstrom


def pairs_within(structures: Arrangements, *, cutoff: float) -> Pairs:
    """All pairs closer than the cutoff in angstrom."""
    columns = (structures.num_atoms, structures.positions, structures.cell, structures.periodic)
    edges = find_edges(*columns, cutoff=cutoff)
    structure = np.repeat(np.arange(len(edges.num_edges)), edges.num_edges)
    place = np.arange(len(structure)) - (np.cumsum(edges.num_edges) - edges.num_edges)[structure]
    once = np.flatnonzero(place < edges.reverse)
    structure = structure[once]
    first_atom = (np.cumsum(structures.num_atoms) - structures.num_atoms)[structure]
    vectors = torch.from_numpy(edges.vectors[once])
    return Pairs(
        torch.from_numpy(first_atom + edges.receivers[once]),
        torch.from_numpy(first_atom + edges.senders[once]),
        torch.from_numpy(structure),
        vectors,
        torch.linalg.vector_norm(vectors, dim=1),
    )


def sum_over_pairs(structures: Arrangements, pairs: Pairs, energies: Tensor, slopes: Tensor) -> FixedEnergy:
    """The fixed energy whose pairs have these energies (P,) in eV and derivatives by their distance (P,) in eV/angstrom."""
    num_structures, num_atoms = len(structures.num_atoms), len(structures.atomic_numbers)
    gradients = (slopes / pairs.distances)[:, None] * pairs.vectors  # (P, 3)
    energy = gradients.new_zeros(num_structures).index_add(0, pairs.structure, energies)
    forces = gradients.new_zeros(num_atoms, 3).index_add(0, pairs.first, gradients).index_add(0, pairs.second, -gradients)
    per_pair = pairs.vectors[:, :, None] * gradients[:, None, :]  # (P, 3, 3)
    virial = gradients.new_zeros(num_structures, 3, 3).index_add(0, pairs.structure, per_pair)
    return FixedEnergy(energy.numpy(), forces.numpy(), virial.numpy() / _volumes(structures)[:, None, None])


def refuse_elements(structures: Arrangements, known: NDArray[np.bool_], *, message: str) -> None:
    """An error for the first atom whose element is not known, by atomic number; `message` says of what, and the remedy."""
    unknown = np.flatnonzero(~known[structures.atomic_numbers])
    if len(unknown):
        structure = int(np.searchsorted(np.cumsum(structures.num_atoms), unknown[0], side="right"))
        symbol = chemical_symbols[structures.atomic_numbers[unknown[0]]]
        raise UserError(f"{structures.place(structure)}: has {symbol}, for which there is {message}")


def _volumes(structures: Arrangements) -> Floats:
    volumes = np.abs(np.linalg.det(structures.cell))
    return np.where(structures.periodic.all(axis=1), volumes, np.nan)
