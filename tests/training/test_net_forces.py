"""Net forces and torques against sums written out, and against forces of an energy, which have none."""

import numpy as np
import pytest
from ase import Atoms
from made_structures import cluster, crystal, structures_of

from modelforge.data.structures import Structures
from modelforge.training.net_forces import net_forces

ATOMS = [cluster(4, (1, 6), seed=0), crystal(3, (1, 6), seed=1), cluster(6, (1, 8), seed=2)]
STRUCTURES = structures_of(ATOMS)
KEYS = ("net_force_rms_mev_per_angstrom", "net_force_per_atom_rms_mev_per_angstrom", "net_torque_rms_mev")


def pair_forces(structures: Structures) -> np.ndarray:
    """Harmonic springs between all atoms of a structure."""
    forces = [r.sum(axis=0) - len(r) * r for r in np.split(structures.positions, structures.offsets[1:-1])]
    return np.concatenate(forces)


def test_they_are_the_sums_over_atoms_of_each_structure():
    forces = np.random.default_rng(0).normal(size=(13, 3))
    net, per_atom, torques = [], [], []
    for atoms, first in zip(ATOMS, (0, 4, 7), strict=True):
        own = forces[first : first + len(atoms)]
        net.append(np.linalg.norm(own.sum(axis=0)))
        per_atom.append(net[-1] / len(atoms))
        if not atoms.pbc.any():
            arms = atoms.positions - atoms.get_center_of_mass()
            torques.append(np.linalg.norm(sum(np.cross(arm, force) for arm, force in zip(arms, own, strict=True))))
    expected = [1e3 * np.sqrt(np.mean(np.square(values))) for values in (net, per_atom, torques)]
    assert net_forces(STRUCTURES, forces) == pytest.approx(dict(zip(KEYS, expected, strict=True)), rel=1e-12)


def test_forces_of_an_energy_leave_none():
    assert net_forces(STRUCTURES, pair_forces(STRUCTURES)) == pytest.approx(dict.fromkeys(KEYS, 0.0), abs=1e-9)


def test_crystals_have_no_torque():
    only = structures_of([Atoms("H", cell=[3, 3, 3], pbc=True)])
    found = net_forces(only, np.array([[3.0, 4.0, 0.0]]))
    assert found == {KEYS[0]: pytest.approx(5e3), KEYS[1]: pytest.approx(5e3), KEYS[2]: None}
