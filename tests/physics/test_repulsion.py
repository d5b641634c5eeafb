"""The repulsion of nuclei against closed forms and numbers of other packages."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import cluster, structures_of
from tolerances import CUTOFF_MARGIN, JUMP

from modelforge.atoms.units import KJ_PER_MOL
from modelforge.errors import UserError
from modelforge.physics.fixed_energy import FixedTerms
from modelforge.physics.repulsion import ZBL, Screening, pair_energies

RADII = {1: 0.31, 6: 0.76, 8: 0.66}  # Cordero et al., Dalton Trans. 2832 (2008), angstrom


def energies(section: ZBL, all_atoms: Sequence[Atoms]) -> np.ndarray:
    return FixedTerms(repulsion=section).of(structures_of(all_atoms)).energy


def dimer(symbols: str, distance: float) -> Atoms:
    return Atoms(symbols, positions=[(0, 0, 0), (0, 0, distance)])


def closed_form(first: int, second: int, distance: float, cutoff: float) -> float:
    """Equation of LAMMPS' pair_style zbl in eV, with the polynomial envelope of power 6."""
    x = (first**0.23 + second**0.23) * distance / 0.46850
    psi = 0.18175 * np.exp(-3.19980 * x) + 0.50986 * np.exp(-0.94229 * x)
    psi += 0.28022 * np.exp(-0.40290 * x) + 0.02817 * np.exp(-0.20162 * x)
    u = distance / cutoff
    smooth = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8 if u < 1 else 0.0
    return float(14.399645 * first * second / distance * psi * smooth)


@pytest.mark.parametrize("cutoff", [None, 2.5])
def test_a_molecule_has_the_sum_of_the_closed_form_over_its_pairs(cutoff: float | None) -> None:
    atoms = cluster(12, [1, 6, 8], seed=0)
    atoms.positions *= 0.65
    pairs = [(i, j) for j in range(12) for i in range(j)]
    z, distances = atoms.numbers, atoms.get_all_distances()
    parts = [closed_form(z[i], z[j], distances[i, j], cutoff or RADII[z[i]] + RADII[z[j]]) for i, j in pairs]
    assert 3 < np.count_nonzero(parts) < len(parts)
    assert energies(ZBL(cutoff=cutoff), [atoms])[0] == pytest.approx(sum(parts), rel=1e-7)


def test_a_cutoff_has_all_its_digits() -> None:
    found = energies(ZBL(cutoff=1.1), [dimer("CO", 0.9)])[0]
    numbers = torch.tensor([6]), torch.tensor([8])
    expected = pair_energies(
        torch.tensor([0.9], dtype=torch.float64), *numbers, cutoffs=torch.tensor([1.1], dtype=torch.float64)
    )
    assert found == pytest.approx(float(expected), rel=1e-13)


def test_two_carbons_have_the_energies_that_openmm_gives() -> None:
    """OpenMM ends the same screened repulsion by (1 + cos(pi r / (2 R))) / 2, with R = 0.73 angstrom for carbon."""
    distances, carbon = torch.tensor([0.01, 0.5, 1.0, 1.38], dtype=torch.float64), torch.full((4,), 6)
    unending = pair_energies(distances, carbon, carbon, cutoffs=torch.full((4,), 1e9, dtype=torch.float64))
    found = unending * (1 + torch.cos(torch.pi * distances / 1.46)) / 2 / KJ_PER_MOL
    np.testing.assert_allclose(found, [4.6440e6, 8.5328e3, 3.3545e2, 3.3711], rtol=5e-4)


def test_the_toy_of_mace_has_its_energies() -> None:
    """H and C at 1 angstrom, with the screening length of MACE (tests of its ZBLBasis: 0.0031 eV for each of both)."""
    screening = Screening((0.02817, 0.2802, 0.5099, 0.1818), (0.2016, 0.4028, 0.9423, 3.2), 0.3, 0.4543 * 0.529)
    numbers, cutoff = torch.tensor([1, 6]), torch.tensor([0.31 + 0.76], dtype=torch.float64)
    distance = torch.ones(1, dtype=torch.float64)
    found = pair_energies(distance, numbers[:1], numbers[1:], cutoffs=cutoff, screening=screening)
    assert float(found) / 2 == pytest.approx(0.0031, rel=1e-2)


def test_it_ends_smoothly_at_the_cutoff() -> None:
    for section, cutoff in ((ZBL(), 0.76 + 0.66), (ZBL(cutoff=2.0), 2.0)):
        all_atoms = [dimer("CO", cutoff + place) for place in (-0.5, -CUTOFF_MARGIN, CUTOFF_MARGIN)]
        found = FixedTerms(repulsion=section).of(structures_of(all_atoms))
        well, inside, outside = found.energy
        steepest = np.abs(found.forces[:2]).max()
        assert 0 < inside < JUMP * well
        assert 0 < np.abs(found.forces[2:4]).max() < JUMP * steepest
        assert outside == 0
        assert not found.forces[4:].any()


def test_an_element_without_a_measured_radius_needs_a_cutoff() -> None:
    atoms = [dimer("CO", 1.1), dimer("BkH", 1.1)]
    with pytest.raises(
        UserError, match=r"made\.xyz:1: has Bk, for which there is no covalent radius; set potential\.repulsion"
    ):
        energies(ZBL(), atoms)
    assert energies(ZBL(cutoff=2.0), atoms)[1] == pytest.approx(closed_form(1, 97, 1.1, 2.0), rel=1e-7)
