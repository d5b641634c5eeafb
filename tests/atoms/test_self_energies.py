"""Self-energies against planted values and numpy's least squares."""

import numpy as np
import pytest
from tolerances import SELF_ENERGY

from modelforge.atoms.self_energies import (
    element_counts,
    fit_self_energies,
    implausible,
    is_determined,
    undetermined_in_words,
)

PLANTED = {1: -13.587222780835477, 6: -1029.4130177, 7: -1484.98, 8: -2042.0, 16: -10834.4844, 35: -48_812.25}  # eV


def random_counts(num_structures: int, num_elements: int, *, seed: int, highest: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest, size=(num_structures, num_elements)).astype(float)


def test_planted_values_are_recovered():
    elements, values = tuple(PLANTED), np.array(list(PLANTED.values()))
    counts = random_counts(400, len(elements), seed=0)
    energies = counts @ values
    assert energies.min() < -5e5
    found = fit_self_energies(counts, energies, elements)
    assert found.by_element == pytest.approx(PLANTED, rel=0, abs=SELF_ENERGY)
    assert found.fitted == elements
    assert undetermined_in_words(found) is None


def test_bromine_gets_the_value_of_bromine():
    """H C N O F Br and H C N O F Cl Br: the sets whose values once went to the wrong elements."""
    for elements in ((1, 6, 7, 8, 9, 35), (1, 6, 7, 8, 9, 17, 35)):
        values = np.array([-10.0 * z for z in elements])
        counts = random_counts(40, len(elements), seed=1)
        found = fit_self_energies(counts, counts @ values, elements)
        assert found.by_element == pytest.approx({z: -10.0 * z for z in elements}, rel=0, abs=SELF_ENERGY)
        assert found.table()[35] == pytest.approx(-350.0, rel=0, abs=SELF_ENERGY)
        assert np.flatnonzero(found.table()).tolist() == list(elements)


def test_counts_stand_in_the_columns_of_their_elements():
    num_atoms = np.array([3, 1, 4])
    atomic_numbers = np.array([35, 1, 35, 6, 1, 1, 6, 35])
    expected = [[1, 0, 2], [0, 1, 0], [2, 1, 1]]
    np.testing.assert_array_equal(element_counts(num_atoms, atomic_numbers, (1, 6, 35)), expected)


def test_the_solution_is_that_of_least_squares_on_all_rows():
    """Structures are summed up by composition, which must weight each composition with its structures."""
    rng = np.random.default_rng(2)
    counts = random_counts(7, 3, seed=3)[rng.choice(7, size=500, p=[0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02])]
    energies = counts @ [-13.6, -1029.0, -2042.0] + rng.normal(scale=3.0, size=500)
    expected = np.linalg.lstsq(counts, energies, rcond=None)[0]
    found = fit_self_energies(counts, energies, (1, 6, 8))
    np.testing.assert_allclose(list(found.by_element.values()), expected, rtol=0, atol=1e-8)


def test_repeating_all_structures_changes_nothing():
    rng = np.random.default_rng(4)
    counts = random_counts(30, 3, seed=5)
    energies = counts @ [-13.6, -1029.0, -2042.0] + rng.normal(size=30)
    once, often = (fit_self_energies(np.tile(counts, (n, 1)), np.tile(energies, n), (1, 6, 8)) for n in (1, 1000))
    assert often.by_element == pytest.approx(once.by_element, rel=0, abs=SELF_ENERGY)


def test_one_composition_has_the_solution_of_minimum_norm_and_says_so():
    counts = np.tile([8.0, 5.0, 2.0], (100, 1))  # C5H8O2
    energies = np.full(100, -9_400.123456789)
    found = fit_self_energies(counts, energies, (1, 6, 8))
    values = np.array(list(found.by_element.values()))
    np.testing.assert_allclose(counts @ values, energies, rtol=0, atol=SELF_ENERGY)
    np.testing.assert_allclose(values, np.linalg.pinv(counts) @ energies, rtol=1e-12, atol=0)
    words = undetermined_in_words(found)
    assert words is not None
    assert "H, C and O cannot be told apart" in words
    assert "leave 2 combinations of them open" in words
    assert "dataset.self_energies.values" in words


def test_words_name_only_the_elements_that_are_open():
    """N and O come as NO only, H alone: H is determined."""
    counts = np.array([[1.0, 1, 1], [2, 1, 1], [3, 2, 2]])
    found = fit_self_energies(counts, counts @ [-13.0, -1480.0, -2040.0], (1, 7, 8))
    words = undetermined_in_words(found)
    assert words is not None
    assert "N and O cannot be told apart" in words
    assert "leave 1 combination of them open" in words
    assert found.by_element[1] == pytest.approx(-13.0, rel=0, abs=SELF_ENERGY)


def test_determined_are_the_compositions_that_the_data_span():
    counts = np.array([[4.0, 1, 0], [6, 2, 0], [4, 1, 1]])  # CH4, C2H6, CH4O: all three determined
    whole = fit_self_energies(counts, counts @ [-13.0, -1030.0, -2040.0], (1, 6, 8))
    assert is_determined(whole, np.array([[0.0, 0, 1], [7, 9, 3]])).all()
    partly = fit_self_energies(counts[[0, 2]], counts[[0, 2]] @ [-13.0, -1030.0, -2040.0], (1, 6, 8))
    tested = np.array([[4.0, 1, 0], [8, 2, 5], [0, 0, 1], [6, 2, 0], [1, 0, 0]])
    assert is_determined(partly, tested).tolist() == [True, True, True, False, False]


def test_totals_of_determined_compositions_are_right_where_single_values_are_open():
    planted = np.array([-13.0, -1030.0, -2040.0])
    counts = np.array([[4.0, 1, 0], [4, 1, 1]])
    found = fit_self_energies(counts, counts @ planted, (1, 6, 8))
    tested = np.array([[8.0, 2, 5], [0, 0, 3]])
    assert is_determined(found, tested).all()
    np.testing.assert_allclose(tested @ list(found.by_element.values()), tested @ planted, rtol=0, atol=SELF_ENERGY)


def test_given_values_are_fixed_first_and_the_rest_is_fitted():
    counts = random_counts(50, 3, seed=6)
    planted = np.array([-13.0, -1030.0, -2040.0])
    found = fit_self_energies(counts, counts @ planted, (1, 6, 8), given={6: -1030.5, 92: -1.0})
    assert found.by_element[6] == -1030.5
    assert 92 not in found.by_element
    assert found.fitted == (1, 8)
    expected = np.linalg.lstsq(counts[:, [0, 2]], counts @ planted - counts[:, 1] * -1030.5, rcond=None)[0]
    np.testing.assert_allclose([found.by_element[1], found.by_element[8]], expected, rtol=0, atol=1e-8)


def test_a_given_value_lifts_the_ambiguity():
    counts = np.array([[4.0, 1.0]] * 5)  # CH4 only
    energies = counts @ [-13.0, -1030.0]
    assert undetermined_in_words(fit_self_energies(counts, energies, (1, 6))) is not None
    found = fit_self_energies(counts, energies, (1, 6), given={1: -13.0})
    assert undetermined_in_words(found) is None
    assert found.by_element[6] == pytest.approx(-1030.0, rel=0, abs=SELF_ENERGY)


def test_all_values_given_leave_nothing_to_fit():
    counts = random_counts(5, 2, seed=7)
    found = fit_self_energies(counts, counts @ [1.0, 2.0], (1, 6), given={1: 5.0, 6: 7.0})
    assert found.by_element == {1: 5.0, 6: 7.0}
    assert found.fitted == ()


@pytest.mark.parametrize(("per_atom", "is_wrong"), [(-5.0, False), (-0.01, False), (2.0, False), (-27.2, True), (600.0, True)])
def test_the_median_energy_per_atom_decides_what_is_implausible(per_atom: float, is_wrong: bool):
    num_atoms = np.array([3, 5, 8, 2])
    interaction = per_atom * num_atoms + np.array([0.1, -0.2, 0.05, np.nan])
    found = implausible(interaction, num_atoms)
    assert (found is not None) == is_wrong
    if found is not None:
        assert found in (0, 1, 2)


def test_one_odd_structure_is_not_implausible_and_no_labels_are_not_either():
    num_atoms = np.full(5, 4)
    assert implausible(np.array([-20.0, -21.0, 4000.0, -20.5, -19.0]), num_atoms) is None
    assert implausible(np.full(5, np.nan), num_atoms) is None
