"""What holds for every fixed energy: derivatives, periodicity, and that structures do not see each other."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from made_structures import cluster, crystal, structures_of
from tolerances import EXACT_SUM, FINITE_DIFFERENCE, STEP

from modelforge.physics.dispersion import D3BJ
from modelforge.physics.fixed_energy import FixedTerms
from modelforge.physics.repulsion import ZBL

ALL_TERMS = {
    "zbl": FixedTerms(repulsion=ZBL()),
    "zbl with a cutoff": FixedTerms(repulsion=ZBL(cutoff=3.0)),
    "d3bj": FixedTerms(dispersion=D3BJ(method="pbe", cutoff=9.0)),
    "both": FixedTerms(ZBL(), D3BJ(a1=0.4, a2=4.5, s8=0.8, cutoff=8.0)),
}
MOLECULE = cluster(9, [1, 6, 8], seed=1)
CRYSTAL = crystal(6, [3, 6, 14], seed=2)


@pytest.fixture(params=ALL_TERMS.values(), ids=ALL_TERMS.keys())
def terms(request: pytest.FixtureRequest) -> FixedTerms:
    return request.param


def energy_of(terms: FixedTerms, atoms: Atoms) -> float:
    return float(terms.of(structures_of([atoms])).energy[0])


@pytest.mark.parametrize("atoms", [MOLECULE, CRYSTAL], ids=["molecule", "crystal"])
def test_forces_are_minus_the_gradient_of_the_energy(terms: FixedTerms, atoms: Atoms) -> None:
    forces, expected = terms.of(structures_of([atoms])).forces, np.zeros((len(atoms), 3))
    for atom, axis in np.ndindex(len(atoms), 3):
        moved = [atoms.copy(), atoms.copy()]
        for sign, some in zip((1, -1), moved, strict=True):
            some.positions[atom, axis] += sign * STEP
        expected[atom, axis] = (energy_of(terms, moved[1]) - energy_of(terms, moved[0])) / (2 * STEP)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(forces, expected, atol=FINITE_DIFFERENCE * np.abs(expected).max(), rtol=0)


def test_stress_is_the_derivative_by_strain(terms: FixedTerms) -> None:
    stress, expected = terms.of(structures_of([CRYSTAL])).stress[0], np.zeros((3, 3))
    for row, column in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * STEP
            strained = CRYSTAL.copy()
            strained.set_cell(np.asarray(CRYSTAL.cell) @ strain, scale_atoms=True)
            energies.append(energy_of(terms, strained))
        expected[row, column] = (energies[0] - energies[1]) / (2 * STEP) / CRYSTAL.get_volume()
    np.testing.assert_allclose(stress, expected, atol=FINITE_DIFFERENCE * np.abs(expected).max(), rtol=0)


def test_what_has_no_volume_has_no_stress(terms: FixedTerms) -> None:
    slab = CRYSTAL.copy()
    slab.pbc = (True, True, False)
    found = terms.of(structures_of([MOLECULE, slab]))
    assert np.isnan(found.stress).all()
    assert np.isfinite(found.forces).all()


def test_structures_do_not_see_each_other(terms: FixedTerms, monkeypatch: pytest.MonkeyPatch) -> None:
    all_atoms = [MOLECULE, CRYSTAL, cluster(14, [1, 17], seed=3), Atoms("H"), crystal(3, [13], seed=4), MOLECULE]
    structures = structures_of(all_atoms)
    together = terms.of(structures)
    alone = [terms.of(structures_of([atoms])) for atoms in all_atoms]
    monkeypatch.setattr("modelforge.physics.fixed_energy.ATOMS_AT_A_TIME", 10)
    for found in (together, terms.of(structures)):
        for name in ("energy", "forces", "stress"):
            expected = np.concatenate([getattr(one, name) for one in alone])
            size = np.nanmax(np.abs(expected))
            np.testing.assert_allclose(getattr(found, name), expected, atol=EXACT_SUM * size, rtol=0)


def test_a_supercell_is_its_cells(terms: FixedTerms) -> None:
    small, large = (terms.of(structures_of([atoms])) for atoms in (CRYSTAL, CRYSTAL.repeat((2, 1, 3))))
    size = np.abs(small.forces).max()
    assert large.energy[0] == pytest.approx(6 * small.energy[0], rel=1e-11)
    np.testing.assert_allclose(large.forces, np.tile(small.forces, (6, 1)), atol=1e-11 * size, rtol=0)
    np.testing.assert_allclose(large.stress, small.stress, atol=1e-11 * np.abs(small.stress).max(), rtol=0)


def test_an_isolated_atom_has_none(terms: FixedTerms) -> None:
    found = terms.of(structures_of([Atoms("Ar")]))
    assert found.energy.tolist() == [0.0]
    assert found.forces.tolist() == [[0.0, 0.0, 0.0]]


def test_the_sum_has_both_terms() -> None:
    structures, both = structures_of([MOLECULE, CRYSTAL]), ALL_TERMS["both"]
    parts = [replace(both, repulsion=FixedTerms().repulsion), replace(both, dispersion=FixedTerms().dispersion)]
    for name in ("energy", "forces", "stress"):
        one, other = (getattr(part.of(structures), name) for part in parts)
        np.testing.assert_allclose(getattr(both.of(structures), name), one + other, rtol=1e-14)


def test_without_terms_all_is_zero() -> None:
    found = FixedTerms().of(structures_of([MOLECULE, CRYSTAL]))
    assert FixedTerms().is_empty
    assert not any(found.energy)
    assert found.forces.shape == (15, 3)
    assert found.stress.shape == (2, 3, 3)


def test_words_and_key_tell_what_was_set() -> None:
    both = FixedTerms(ZBL(cutoff=2.0), D3BJ(method="pbe"))
    assert str(both) == "zbl (cutoff 2) and d3bj (method pbe)"
    assert str(FixedTerms(ZBL())) == "zbl"
    keys = {terms.key for terms in (both, *ALL_TERMS.values(), FixedTerms(dispersion=D3BJ(method="pbe")))}
    assert len(keys) == 2 + len(ALL_TERMS)
