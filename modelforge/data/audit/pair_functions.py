"""Energies predicted from forces alone: a sum of pair functions, fitted to the forces by least squares.

Each pair of elements has a sum of Gaussians in the distance, with a smooth cutoff. The energies were not looked at, so that
energy differences within an ensemble tell whether energies and forces belong together, also where no two structures are near.

Legend: C conformations of an ensemble, A atoms of each, E edges, B basis functions, P parameters (pairs of elements x B).
"""

from dataclasses import dataclass

import numpy as np

from modelforge.atoms.neighbors import find_edges
from modelforge.data.audit.near_pairs import SAME_CELL
from modelforge.data.audit.sampling import Ensemble
from modelforge.data.structures import Floats, Integers

NUM_GAUSSIANS = 16  # 8 miss the stretch vibrations (60 % of the forces' variance instead of 85 %), 20 gain nothing
CUTOFF = 5.0  # angstrom
FIRST_CENTRE = 0.7  # angstrom
RIDGE = 1e-5  # of the diagonal of the normal equations
MAX_ATOMS = 6_000  # of all conformations: dense liquids take 0.15 ms each
MAX_PARAMETERS = 600  # above (eight elements) the fit would take seconds


@dataclass(frozen=True, eq=False)
class PredictedEnergies:
    """Energies and their prediction from the forces, both without the mean of their ensemble."""

    energy: Floats  # (all C,) eV
    predicted: Floats  # (all C,) eV
    explained_forces: float  # share of the forces' variance that the pair functions describe
    num_atoms: Integers  # (all C,)
    num_independent: int  # energies less ensembles


@dataclass(frozen=True, eq=False)
class _Basis:
    elements: Integers
    length_scale: float

    @property
    def num_parameters(self) -> int:
        return len(self.elements) * (len(self.elements) + 1) // 2 * NUM_GAUSSIANS


def predict_energies(ensembles: list[Ensemble], *, length_scale: float) -> PredictedEnergies | None:
    """Fit to the forces of all ensembles and predict their energies, or None where that is beyond such a fit.

    `length_scale` is by how much lengths seem to be too large. Crystals whose cell changes are left out: forces do not see
    the uniform strain.
    """
    usable = _thinned([ensemble for ensemble in ensembles if _has_one_cell(ensemble)])
    if not usable:
        return None
    basis = _Basis(np.unique(np.concatenate([ensemble.atomic_numbers for ensemble in usable])), length_scale)
    if basis.num_parameters > MAX_PARAMETERS:
        return None
    normal, right_side = np.zeros((basis.num_parameters,) * 2), np.zeros(basis.num_parameters)
    features, total = [], 0.0
    for ensemble in usable:
        of_energy, of_forces = _features(ensemble, basis)
        forces = ensemble.forces.ravel()
        normal += of_forces.T @ of_forces
        right_side += of_forces.T @ forces
        total += float(forces @ forces)
        features.append(of_energy)
    if total == 0:
        return None
    parameters = _ridge(normal, right_side)
    explained = float(2 * right_side @ parameters - parameters @ normal @ parameters) / total
    return PredictedEnergies(
        np.concatenate([_centred(ensemble.energy) for ensemble in usable]),
        np.concatenate([_centred(of_energy @ parameters) for of_energy in features]),
        explained,
        np.concatenate([np.full(len(ensemble), ensemble.num_atoms) for ensemble in usable]),
        sum(len(ensemble) - 1 for ensemble in usable),
    )


def _thinned(ensembles: list[Ensemble]) -> list[Ensemble]:
    """Each ensemble at equal distances, so that all together have about `MAX_ATOMS` atoms."""
    num_atoms = sum(len(ensemble) * ensemble.num_atoms for ensemble in ensembles)
    step = max(1, -(-num_atoms // MAX_ATOMS))
    return [ensemble.every(step) for ensemble in ensembles if len(ensemble) > step]


def _has_one_cell(ensemble: Ensemble) -> bool:
    change = np.abs(ensemble.cell - ensemble.cell[0]).max()
    return len(ensemble) > 1 and (not ensemble.is_periodic or bool(change <= SAME_CELL * np.abs(ensemble.cell[0]).max()))


def _features(ensemble: Ensemble, basis: _Basis) -> tuple[Floats, Floats]:
    """Derivatives of energies and forces by the parameters, (C, P) and (3 C A, P)."""
    num, num_atoms = len(ensemble), ensemble.num_atoms
    edges = find_edges(
        np.full(num, num_atoms),
        ensemble.positions.reshape(-1, 3),
        ensemble.cell,
        np.tile(ensemble.periodic, (num, 1)),
        cutoff=CUTOFF * basis.length_scale,
    )
    conformation = np.repeat(np.arange(num), edges.num_edges)  # (E,)
    receiver = conformation * num_atoms + edges.receivers
    distance = np.linalg.norm(edges.vectors, axis=1)
    values, slopes = _gaussians(distance / basis.length_scale)  # (E, B) each
    pair = _pair_type(ensemble, edges.receivers.astype(np.int64), edges.senders.astype(np.int64), basis)
    num_pairs = basis.num_parameters // NUM_GAUSSIANS
    of_energy = _sums(0.5 * values, conformation * num_pairs + pair, num * num_pairs)  # each pair is two edges
    along = edges.vectors / distance[:, None] / basis.length_scale
    atom_pair, num_rows = receiver * num_pairs + pair, num * num_atoms * num_pairs
    of_forces = np.stack([_sums(slopes * along[:, [axis]], atom_pair, num_rows) for axis in range(3)])
    by_atom = of_forces.reshape(3, num * num_atoms, basis.num_parameters)
    return of_energy.reshape(num, -1), np.swapaxes(by_atom, 0, 1).reshape(-1, basis.num_parameters)


def _sums(rows: Floats, labels: Integers, num_labels: int) -> Floats:
    """Sums of the rows (E, B) of each label, (num_labels, B)."""
    totals = np.zeros((num_labels, rows.shape[1]))
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    totals[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return totals


def _pair_type(ensemble: Ensemble, receivers: Integers, senders: Integers, basis: _Basis) -> Integers:
    """A number from 0 for each unordered pair of elements, (E,)."""
    kinds = np.searchsorted(basis.elements, ensemble.atomic_numbers)
    low, high = np.minimum(kinds[receivers], kinds[senders]), np.maximum(kinds[receivers], kinds[senders])
    pair: Integers = high * (high + 1) // 2 + low
    return pair


def _gaussians(distance: Floats) -> tuple[Floats, Floats]:
    """Values and slopes of the basis functions at distances (E,) in angstrom, (E, B) each."""
    centres, width = np.linspace(FIRST_CENTRE, CUTOFF, NUM_GAUSSIANS, retstep=True)
    away = (distance[:, None] - centres) / width
    gaussian = np.exp(-0.5 * away**2)
    cutoff = 0.5 * (1 + np.cos(np.pi * distance / CUTOFF))[:, None]
    slope_of_cutoff = -0.5 * np.pi / CUTOFF * np.sin(np.pi * distance / CUTOFF)[:, None]
    return gaussian * cutoff, gaussian * (slope_of_cutoff - away / width * cutoff)


def _ridge(normal: Floats, right_side: Floats) -> Floats:
    """Least squares from the normal equations, each parameter scaled to one."""
    scale = np.sqrt(np.diag(normal))
    scale[scale == 0] = 1.0
    scaled = normal / scale / scale[:, None] + RIDGE * np.eye(len(scale))
    return np.asarray(np.linalg.solve(scaled, right_side / scale)) / scale


def _centred(values: Floats) -> Floats:
    return np.asarray(values - values.mean())
