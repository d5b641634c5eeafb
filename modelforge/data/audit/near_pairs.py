"""Pairs of nearly identical conformations: the energy difference, and what the forces of both ends say it should be.

For a displacement dx at constant cell, dE = -1/2 (F_1 + F_2).dx up to third order in dx (the trapezoidal rule). Molecules
are superposed first, and the forces are rotated with them (Kabsch, Acta Cryst. A32, 922, 1976).

Legend: C conformations of an ensemble, A atoms, P pairs, D numbers that describe a conformation.
"""

from dataclasses import dataclass

import numpy as np

from modelforge.data.audit.sampling import Ensemble
from modelforge.data.structures import Floats, Integers

NUM_NEAREST = 3  # partners of each conformation, besides the next one in the file
MAX_DESCRIPTION = 400  # numbers by which conformations are compared
SAME_CELL = 1e-4  # of the cell's length: cells that differ by less count as one


@dataclass(frozen=True, eq=False)
class NearPairs:
    """Energy differences of pairs and what the forces say about them."""

    energy_change: Floats  # (P,) eV
    work: Floats  # (P,) eV, -F.dx
    displacement: Floats  # (P,) angstrom, root mean square over atoms
    num_atoms: Integers  # (P,)


def near_pairs(ensemble: Ensemble) -> NearPairs:
    """Each conformation of an ensemble with its nearest ones and its successor."""
    pairs = nearest(describe(ensemble))
    if ensemble.is_periodic:
        pairs = pairs[_same_cell(ensemble, pairs)]
    first, second = pairs.T
    if ensemble.is_periodic:
        displacements = crystal_displacements(ensemble, first, second) @ ensemble.cell[first]
        forces = 0.5 * (ensemble.forces[first] + ensemble.forces[second])
    else:
        displacements, forces = _superposed(ensemble, first, second)
    return NearPairs(
        ensemble.energy[second] - ensemble.energy[first],
        -np.einsum("pai,pai->p", forces, displacements),
        np.sqrt(np.mean(np.sum(displacements**2, axis=2), axis=1)),
        np.full(len(pairs), ensemble.num_atoms),
    )


def describe(ensemble: Ensemble) -> Floats:
    """Numbers that are near for near conformations: distances in molecules, phases of the places in crystals, (C, D)."""
    generator = np.random.default_rng(0)
    if ensemble.is_periodic:
        fractional = ensemble.positions @ np.linalg.inv(ensemble.cell)
        relative = (fractional - fractional[:, :1]).reshape(len(ensemble), -1)
        angles = 2 * np.pi * _some_columns(relative, MAX_DESCRIPTION // 2, generator)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    first, second = np.triu_indices(ensemble.num_atoms, 1)
    chosen = _some_columns(np.arange(len(first))[None], MAX_DESCRIPTION, generator)[0]
    difference = ensemble.positions[:, first[chosen]] - ensemble.positions[:, second[chosen]]
    distances: Floats = np.linalg.norm(difference, axis=2)
    return distances


def nearest(description: Floats) -> Integers:
    """Pairs (first < second) of each row with its nearest rows and the next one, (P, 2)."""
    num = len(description)
    if num < 2:
        return np.zeros((0, 2), dtype=np.int64)
    squares = np.einsum("cd,cd->c", description, description)
    distances = squares[:, None] + squares - 2 * description @ description.T
    np.fill_diagonal(distances, np.inf)
    few = min(NUM_NEAREST, num - 1)
    partners = np.argpartition(distances, few - 1, axis=1)[:, :few]
    near = np.stack([np.repeat(np.arange(num), few), partners.ravel()], axis=1)
    consecutive = np.stack([np.arange(num - 1), np.arange(1, num)], axis=1)
    return np.unique(np.sort(np.concatenate([near, consecutive]), axis=1), axis=0)


def crystal_displacements(ensemble: Ensemble, first: Integers, second: Integers) -> Floats:
    """Fractional displacements to the nearest image, without the drift of the whole, (P, A, 3)."""
    inverse = np.linalg.inv(ensemble.cell)
    change = ensemble.positions[second] @ inverse[second] - ensemble.positions[first] @ inverse[first]
    change -= np.where(ensemble.periodic, np.round(change), 0.0)
    moved: Floats = change - change.mean(axis=1, keepdims=True)
    return moved


def _same_cell(ensemble: Ensemble, pairs: Integers) -> Integers:
    largest = np.abs(ensemble.cell).max(axis=(1, 2))
    change = np.abs(ensemble.cell[pairs[:, 1]] - ensemble.cell[pairs[:, 0]]).max(axis=(1, 2))
    return np.flatnonzero(change <= SAME_CELL * largest[pairs[:, 0]])


def _superposed(ensemble: Ensemble, first: Integers, second: Integers) -> tuple[Floats, Floats]:
    """Displacements from the first, rotated, to the second and the mean forces of both, (P, A, 3) each."""
    centred = ensemble.positions - ensemble.positions.mean(axis=1, keepdims=True)
    start, end = centred[first], centred[second]
    left, _, right = np.linalg.svd(np.swapaxes(start, 1, 2) @ end)
    left[:, :, 2] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[:, None]  # a rotation, no reflection
    rotation = left @ right  # (P, 3, 3), rows of the first times it come onto the second
    forces = 0.5 * (ensemble.forces[first] @ rotation + ensemble.forces[second])
    return end - start @ rotation, forces


def _some_columns(rows: Floats | Integers, at_most: int, generator: np.random.Generator) -> Floats | Integers:
    if rows.shape[1] <= at_most:
        return rows
    return rows[:, np.sort(generator.choice(rows.shape[1], at_most, replace=False))]
