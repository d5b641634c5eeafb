"""Absolute scales of labelled structures, which units that are wrong together change: lengths, stiffness, total energies.

Each is a ratio to what is usual, 1 where the units are right and NaN where the data cannot tell.

Legend: S structures, N atoms of all of them, E edges.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from modelforge.atoms.neighbors import find_edges
from modelforge.atoms.units import HARTREE
from modelforge.data.structures import Floats, Integers, Structures

NOBLE_GASES = (2, 10, 18, 36, 54, 86)  # they form no bonds whose length could be compared
REACH = 2.5  # of the shortest distance: from X-H bonds (1.0 angstrom) to the bonds between other elements
BONDED = 1.25  # of the sum of covalent radii, up to which an atom and a hydrogen count as bonded
FORCE_CONSTANTS = {5: 22.0, 6: 31.0, 7: 40.0, 8: 47.0, 14: 17.0, 15: 20.0, 16: 26.0}
"""Usual force constants of X-H stretches in eV/angstrom^2: mu (2 pi c nu)^2 from wavenumbers of 2200 (SiH) to 3700 (OH) 1/cm.
Regressions over thermal ensembles gave 27 to 35 for CH, 38 to 42 for NH, 23 (hydrogen bridge) to 48 for OH."""
MIN_BONDS = 20
MIN_BOND_CORRELATION = 0.7  # of force and length; 0.86 to 0.99 in thermal ensembles, near 0 in relaxed structures

# Energies of free atoms in hartree, hydrogen to krypton: up to argon without relativity (Chakravorty et al., Phys. Rev. A 47,
# 3649, 1993), from potassium on Hartree-Fock (Clementi and Roetti 1974); 0.3 % are of no concern here.
FREE_ATOMS = (
    *(-0.5, -2.904, -7.478, -14.667, -24.654, -37.845, -54.589, -75.067, -99.734, -128.94, -162.25, -200.05),
    *(-242.35, -289.36, -341.26, -398.11, -460.15, -527.54, -599.16, -676.76, -759.74, -848.41, -942.88, -1043.36),
    *(-1149.87, -1262.44, -1381.41, -1506.87, -1638.96, -1777.85, -1923.26, -2075.36, -2234.24, -2399.87, -2572.44, -2752.05),
)
BINDING = 1.006  # typical ratio of a molecule's energy to that of its atoms: 1.001 to 1.011 in seven sets of molecules
NUM_ELEMENTS = 256


@dataclass(frozen=True)
class Stiffness:
    """Force constants of bonds to hydrogen, relative to the usual ones."""

    ratio: float
    correlation: float  # of force and bond length, negative
    num_bonds: int


@dataclass(frozen=True)
class TotalEnergies:
    """Energies relative to the sum over free atoms with all their electrons."""

    ratio: float
    spread: float  # half the distance between the 10 % and 90 % quantiles, relative
    num_compositions: int
    per_atom_ratio: float  # if the energies were per atom and were multiplied by the number of atoms


def length_ratio(structures: Structures, *, shortest: float) -> float:
    """Median distance to the nearest neighbour, over the sum of covalent radii; `shortest` is a typical shortest distance."""
    if not np.isfinite(shortest) or shortest <= 0:
        return float("nan")
    receivers, senders, vectors = _edges(structures, cutoff=REACH * shortest)
    elements = structures.atomic_numbers
    binds = ~np.isin(elements, NOBLE_GASES)
    both = binds[receivers] & binds[senders]
    radii = covalent_radii[elements]
    nearest = np.full(len(elements), np.inf)
    relative = np.linalg.norm(vectors, axis=1) / (radii[receivers] + radii[senders])
    np.minimum.at(nearest, receivers[both], relative[both])
    found = nearest[np.isfinite(nearest)]
    return float(np.median(found)) if len(found) else float("nan")


def stiffness(structures: Structures, *, length_scale: float) -> Stiffness | None:
    """Slope of the force on hydrogen along its bond against the bond length, over all X-H bonds; None without an answer.

    A negative ratio means forces that point the wrong way. `length_scale` is by how much lengths seem to be too large.
    """
    largest = max(covalent_radii[element] for element in FORCE_CONSTANTS) + covalent_radii[1]
    receivers, senders, vectors = _edges(structures, cutoff=BONDED * float(largest) * length_scale)
    length = np.linalg.norm(vectors, axis=1)
    elements = structures.atomic_numbers.astype(np.int64)
    limit = BONDED * length_scale * (covalent_radii[elements[receivers]] + covalent_radii[1])
    is_bond = (elements[senders] == 1) & (length > 0) & (length < limit) & np.isfinite(structures.forces[senders]).all(axis=1)
    receivers, senders, length, vectors = receivers[is_bond], senders[is_bond], length[is_bond], vectors[is_bond]
    along = np.einsum("ei,ei->e", structures.forces[senders], vectors) / length
    found = [
        _force_constant(length[mine], along[mine], usual)
        for element, usual in FORCE_CONSTANTS.items()
        if (mine := elements[receivers] == element).sum() >= MIN_BONDS
    ]
    convincing = [bond for bond in found if abs(bond.correlation) >= MIN_BOND_CORRELATION]
    return max(convincing, key=lambda bond: bond.num_bonds, default=None)


def total_energies(structures: Structures) -> TotalEnergies | None:
    """Energies over those of the free atoms and their usual binding; None where an element is heavier than krypton."""
    table = np.full(NUM_ELEMENTS, np.nan)
    table[1 : len(FREE_ATOMS) + 1] = np.array(FREE_ATOMS) * HARTREE * BINDING
    of_atoms = np.add.reduceat(table[structures.atomic_numbers], structures.offsets[:-1])
    known = np.isfinite(of_atoms) & np.isfinite(structures.energy) & (structures.num_atoms > 1)
    if not known.any():
        return None
    ratios = structures.energy[known] / of_atoms[known]
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    if middle == 0:
        return None
    num_compositions = len(np.unique(of_atoms[known]))
    per_atom = float(np.median(ratios * structures.num_atoms[known]))
    return TotalEnergies(float(middle), float(high - low) / 2 / abs(float(middle)), num_compositions, per_atom)


def _force_constant(length: Floats, along: Floats, usual: float) -> Stiffness:
    """Regression of the outward force on the bond length, (E,) each."""
    away, force = length - length.mean(), along - along.mean()
    covariance, norms = float(away @ force), (float(np.linalg.norm(away)), float(np.linalg.norm(force)))
    if not all(norms):
        return Stiffness(float("nan"), 0.0, len(length))
    return Stiffness(-covariance / norms[0] ** 2 / usual, covariance / norms[0] / norms[1], len(length))


def _edges(structures: Structures, *, cutoff: float) -> tuple[Integers, Integers, Floats]:
    """Receivers and senders among all atoms, (E,), and vectors from one to the other, (E, 3)."""
    if not len(structures):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3))
    edges = find_edges(structures.num_atoms, structures.positions, structures.cell, structures.periodic, cutoff=cutoff)
    first_atom = np.repeat(structures.offsets[:-1], edges.num_edges)
    return edges.receivers + first_atom, edges.senders + first_atom, edges.vectors
