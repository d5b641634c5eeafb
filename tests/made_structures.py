"""Structures, graphs and batches for tests, from ASE atoms and from random numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from modelforge.atoms.graph import Batch, Reach
from modelforge.data.batching.batches import structure_table
from modelforge.data.structures import Structures

NO_CONSTANTS = np.zeros(119)


def structures_of(all_atoms: Sequence[Atoms]) -> Structures:
    """Atoms as columns; labels from info and arrays under their own names, missing ones are NaN."""
    num = len(all_atoms)
    pairs = [(atoms, np.full((len(atoms), 3), np.nan)) for atoms in all_atoms]
    subsets = [str(atoms.info.get("subset", "")) for atoms in all_atoms]
    names = tuple(dict.fromkeys(subsets))
    return Structures(
        num_atoms=np.array([len(atoms) for atoms in all_atoms], dtype=np.int64),
        atomic_numbers=np.concatenate([atoms.numbers for atoms in all_atoms]).astype(np.uint8),
        positions=np.concatenate([atoms.positions for atoms in all_atoms]),
        cell=np.array([np.asarray(atoms.cell) for atoms in all_atoms]),
        periodic=np.array([atoms.pbc for atoms in all_atoms]),
        energy=np.array([atoms.info.get("energy", np.nan) for atoms in all_atoms], dtype=np.float64),
        forces=np.concatenate([atoms.arrays.get("forces", nan) for atoms, nan in pairs]),
        stress=np.array([atoms.info.get("stress", np.full((3, 3), np.nan)) for atoms in all_atoms]),
        total_charge=np.array([atoms.info.get("total_charge", np.nan) for atoms in all_atoms], dtype=np.float64),
        spin_multiplicity=np.array([atoms.info.get("spin_multiplicity", np.nan) for atoms in all_atoms], dtype=np.float64),
        dipole=np.array([atoms.info.get("dipole", np.full(3, np.nan)) for atoms in all_atoms]),
        quadrupole=np.array([atoms.info.get("quadrupole", np.full((3, 3), np.nan)) for atoms in all_atoms]),
        partial_charges=np.concatenate([atoms.arrays.get("partial_charges", nan[:, 0]) for atoms, nan in pairs]),
        group=np.array([atoms.info.get("group", place) for place, atoms in enumerate(all_atoms)], dtype=np.int64),
        subset=np.array([names.index(name) for name in subsets], dtype=np.int64),
        file=np.zeros(num, dtype=np.int64),
        index_in_file=np.arange(num),
        subset_names=names,
        files=("made.xyz",),
    )


def batch_of(
    all_atoms: Sequence[Atoms],
    *,
    cutoff: float = 0.0,
    reach: Reach | None = None,
    dtype: torch.dtype = torch.float64,
    constants: np.ndarray = NO_CONSTANTS,
) -> Batch:
    """All atoms as one batch, with the edges of a cutoff, or all that a potential needs."""
    reach = reach or Reach(cutoff)
    table = structure_table(structures_of(all_atoms), reach=reach, self_energies=constants, dtype=dtype)
    return table.batch(torch.arange(len(all_atoms)))


def cluster(num_atoms: int, elements: Sequence[int], *, seed: int, apart: float = 0.9) -> Atoms:
    """Random atoms in a ball whose density is that of a molecule, no two nearer than `apart` angstrom."""
    rng = np.random.default_rng(seed)
    radius = 1.2 * num_atoms ** (1 / 3)
    places: list[np.ndarray] = []
    while len(places) < num_atoms:
        place = rng.uniform(-radius, radius, size=3)
        if np.linalg.norm(place) < radius and all(np.linalg.norm(place - other) > apart for other in places):
            places.append(place)
    return Atoms(rng.choice(elements, size=num_atoms), positions=places)


def crystal(num_atoms: int, elements: Sequence[int], *, seed: int) -> Atoms:
    """Random atoms in a skewed cell."""
    rng = np.random.default_rng(seed)
    size = 2.4 * num_atoms ** (1 / 3)
    cell = size * (np.eye(3) + np.array([[0.0, 0.1, -0.05], [0.3, 0.0, 0.1], [-0.2, 0.25, 0.0]]))
    grid = np.stack(np.meshgrid(*[np.arange(int(np.ceil(num_atoms ** (1 / 3))))] * 3), axis=-1).reshape(-1, 3)
    scaled = (grid[:num_atoms] + rng.uniform(-0.15, 0.15, size=(num_atoms, 3))) / (grid.max() + 1)
    return Atoms(rng.choice(elements, size=num_atoms), scaled_positions=scaled, cell=cell, pbc=True)


def with_charges(atoms: Atoms, *, seed: int) -> Atoms:
    """The atoms with random partial charges, dipole and quadrupole."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.arrays["partial_charges"] = rng.normal(size=len(atoms))
    atoms.info["dipole"], quadrupole = rng.normal(size=3), rng.normal(size=(3, 3))
    atoms.info["quadrupole"] = quadrupole + quadrupole.T
    return atoms


def labelled(atoms: Atoms, *, seed: int, energy: float | None = None) -> Atoms:
    """The atoms with random forces and, in a crystal, stress."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.info["energy"] = rng.normal() if energy is None else energy
    atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
    if atoms.pbc.all():
        stress = rng.normal(size=(3, 3)) * 0.01
        atoms.info["stress"] = stress + stress.T
    return atoms
