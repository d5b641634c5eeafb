"""Numbers of an inspection: histograms, and structures that are odd."""

import numpy as np
import pytest
from ase import Atoms
from made_structures import structures_of

from modelforge.data.audit.audit import audit
from modelforge.inspection.histogram import Histogram, histogram, histogram_of_sizes
from modelforge.inspection.measuring import energies, largest_places
from modelforge.inspection.oddities import oddities

NAMES = {"quantity": "length", "unit": "angstrom", "counted": "structures"}


def total(found: Histogram) -> int:
    return sum(found.counts) + found.num_below + found.num_above


def test_a_histogram_has_round_edges_and_all_values() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    found = histogram(values, **NAMES)
    assert found.edges[1:3] == (found.edges[0] + 0.5, found.edges[0] + 1.0)
    assert len(found.counts) <= 16
    assert total(found) == sum(found.counts) == 1000
    assert found.counts == tuple(np.histogram(values, found.edges)[0])


def test_far_values_do_not_squeeze_the_others() -> None:
    found = histogram(np.append(np.linspace(0.0, 1.0, 999), 1e6), **NAMES)
    assert (found.edges[0], found.edges[-1], found.num_above) == (0.0, 1.0, 1)
    assert total(found) == 1000


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1e5, -1e5 + 1e-6], [1e-12, 2e-12], [-2079.123456]])
def test_few_or_equal_values_make_a_histogram(values: list[float]) -> None:
    assert total(histogram(np.array(values), **NAMES)) == len(values)


def test_sizes_are_counted_by_decades_and_do_not_depend_on_the_pieces() -> None:
    values = 10.0 ** np.random.default_rng(1).uniform(-2, 1, size=500)
    found = histogram_of_sizes([values[:100], values[100:]], **NAMES)
    assert found == histogram_of_sizes([values], **NAMES)
    assert found.is_logarithmic
    assert total(found) == 500
    assert found.counts == tuple(np.histogram(values, found.edges)[0])


def test_zeros_have_no_decade() -> None:
    found = histogram_of_sizes([np.zeros(3)], **NAMES)
    assert (found.num_below, total(found)) == (3, 3)


def test_the_largest_are_named_in_order_without_missing_ones() -> None:
    assert largest_places(np.array([1.0, np.nan, 3.0, 2.0]), 2) == [2, 3]
    assert largest_places(np.full(3, np.nan)) == []


def molecule(distance: float, energy: float, force: float = 0.1) -> Atoms:
    atoms = Atoms("NO", positions=[[0, 0, 0], [0, 0, distance]])
    atoms.info["energy"] = energy
    atoms.arrays["forces"] = np.array([[0, 0, force], [0, 0, -force]])
    return atoms


def test_odd_structures_are_counted_and_named() -> None:
    distances = 1.15 + 0.001 * np.arange(40)
    made = [molecule(distance, -3500.0 + distance) for distance in distances]
    made += [molecule(1.15, -3400.0), molecule(1.3, -3498.7, force=300.0), molecule(0.01, -3498.7)]
    structures = structures_of(made)
    found = {oddity.name: oddity for oddity in oddities(structures, audit(structures).figures)}
    assert found["exact duplicates"].examples == ("made.xyz:40 is made.xyz:0, with an energy +98.85 eV from it",)
    assert found["energies far from what the composition says"].examples == ("made.xyz:40: +49.4 eV per atom",)
    assert found["forces far larger than the others"].examples == ("made.xyz:41 atom 0 (N): 300 eV/angstrom",)
    assert found["atoms in the same place"].examples == (
        "made.xyz:42 atoms 0 (N) and 1 (O): 0.010 angstrom, 0.01 of the covalent radii",
    )
    assert (
        found["closest pairs of atoms"].remark == "1 structures have atoms nearer than 0.35 of the sum of their covalent radii"
    )
    assert len(found["near duplicates"].examples) == 5


def test_the_fit_of_self_energies_leaves_what_the_composition_does_not_say() -> None:
    made = [
        Atoms("H2", [[0, 0, 0], [0, 0, 0.75]]),
        Atoms("HO", [[0, 0, 0], [0, 0, 0.97]]),
        Atoms("O2", [[0, 0, 0], [0, 0, 1.2]]),
    ]
    for atoms, energy in zip(made, (-20.0, -110.0, -200.6), strict=True):
        atoms.info["energy"] = energy
    found = energies(structures_of(made))
    assert found is not None
    left = np.linalg.lstsq(np.array([[2, 0], [1, 1], [0, 2]]), np.array([-20.0, -110.0, -200.6]), rcond=None)[1]
    assert found.rmse_per_atom == pytest.approx(np.sqrt(left[0] / 3) / 2)
    assert (found.num_compositions, found.undetermined) == (3, None)
