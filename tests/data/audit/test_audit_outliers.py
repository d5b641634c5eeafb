"""Large forces and far energies: quantiles equal to numpy's, corrupted labels named with their place."""

from dataclasses import replace

import numpy as np
import pytest

from modelforge.data.audit.outliers import (
    QUANTILES,
    energy_findings,
    far_energies,
    force_figures,
    force_findings,
)
from modelforge.data.structures import Structures, concatenate

BIN = 0.006  # relative: quantiles come from a histogram with 500 bins per decade


def test_quantiles_are_those_of_all_force_norms(ethanolamine: Structures):
    norms = np.linalg.norm(ethanolamine.forces, axis=1)
    figures = force_figures(ethanolamine)
    assert figures is not None
    expected = np.quantile(norms, QUANTILES, method="inverted_cdf")
    assert figures.quantiles == pytest.approx(tuple(expected), rel=BIN)
    assert figures.largest[0].norm == pytest.approx(norms.max())
    rms = [np.sqrt((part**2).mean()) for part in np.split(norms, ethanolamine.offsets[1:-1])]
    assert figures.typical == pytest.approx(np.median(rms))


def test_the_largest_forces_have_their_places(ethanolamine: Structures):
    forces = ethanolamine.forces.copy()
    forces[ethanolamine.offsets[17] + 3] = [0, 0, 400.0]
    forces[ethanolamine.offsets[203] + 5] = [300.0, 0, 0]
    wrong = replace(ethanolamine, forces=forces)
    figures = force_figures(wrong)
    assert figures is not None
    assert [(force.structure, force.atom) for force in figures.largest[:2]] == [(17, 3), (203, 5)]
    (finding,) = force_findings(wrong, figures)
    assert (finding.severity, finding.key) == ("note", "dataset.filter.max_force")
    assert f"{wrong.place(17)} atom 3 (400)" in finding.message
    assert f"{wrong.place(203)} atom 5 (300)" in finding.message


def test_ordinary_forces_are_no_outliers(ethanolamine: Structures):
    assert force_findings(ethanolamine, force_figures(ethanolamine)) == ()


def test_without_forces_there_are_no_figures(ethanolamine: Structures):
    assert force_figures(replace(ethanolamine, forces=np.full_like(ethanolamine.forces, np.nan))) is None


def test_missing_forces_do_not_count(ethanolamine: Structures):
    forces = ethanolamine.forces.copy()
    forces[ethanolamine.offsets[100] :] = np.nan
    figures = force_figures(replace(ethanolamine, forces=forces))
    expected = force_figures(ethanolamine, np.arange(100))
    assert figures == expected


@pytest.mark.parametrize("shift", [60.0, -60.0])
def test_an_energy_far_from_the_others_has_its_place(ethanolamine: Structures, shift: float):
    energy = ethanolamine.energy.copy()
    energy[42] += shift
    wrong = replace(ethanolamine, energy=energy)
    worst = far_energies(wrong)
    assert worst[0].structure == 42
    assert worst[0].deviation == pytest.approx(shift / ethanolamine.num_atoms[42], rel=0.05)
    (finding,) = energy_findings(wrong, worst)
    assert wrong.place(42) in finding.message


def test_ordinary_energies_are_no_outliers(ethanolamine: Structures):
    assert energy_findings(ethanolamine, far_energies(ethanolamine)) == ()


def test_isolated_atoms_are_no_outliers(acac: Structures, read_shared):
    both = concatenate([acac, read_shared("acac/isolated_atoms.xyz")])
    assert energy_findings(both, far_energies(both)) == ()


def test_an_element_that_no_fit_has_seen_says_nothing(ethanolamine: Structures, monkeypatch: pytest.MonkeyPatch):
    """Its structures cannot be judged, which is no reason to call them far."""
    monkeypatch.setattr("modelforge.data.audit.outliers.MAX_FITTED", 10)
    elements = ethanolamine.atomic_numbers.copy()
    elements[ethanolamine.offsets[1]] = 17  # not among the ten evenly spaced structures
    odd = replace(ethanolamine, atomic_numbers=elements)
    assert 1 not in [energy.structure for energy in far_energies(odd)]


def test_a_fit_with_as_many_constants_as_energies_accuses_nobody(read_shared):
    crystals = read_shared("periodic/alexandria-random-1k.xyz").slice(0, 80)
    assert far_energies(crystals) == ()
