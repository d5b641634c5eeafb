"""Filters: what each leaves out, under which reason and from which file, and what they refuse."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.data import atomic_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from made_structures import cluster, labelled, structures_of
from pydantic import ValidationError

from modelforge.data.filter import FilterSection, counts_by_reason, element_table, filtered, largest_forces
from modelforge.data.sources.read_report import Removal
from modelforge.data.structures import COLUMNS, Structures
from modelforge.errors import UserError


def molecule(formula: str, *, energy: float = np.nan, force: float | None = None, subset: str = "") -> Atoms:
    """A molecule whose last atom has a force along x."""
    atoms = Atoms(formula)
    atoms.positions[:, 0] = 2.0 * np.arange(len(atoms))
    atoms.info |= {"energy": energy, "subset": subset}
    if force is not None:
        atoms.arrays["forces"] = np.zeros((len(atoms), 3))
        atoms.arrays["forces"][-1] = (0.6 * force, 0.0, -0.8 * force)
    return atoms


ALL_ATOMS = [
    molecule("H2O", energy=-6.0, force=1.0, subset="water"),
    molecule("CH4", energy=-50.0, force=20.0, subset="hot"),
    molecule("C2H6O", energy=-9.0, force=9.99, subset="hot"),
    molecule("O", energy=30.0, force=0.0, subset="atom"),
    molecule("NaCl"),
    molecule("H2", energy=-2.0, subset="water"),
    molecule("OH", force=-11.0),
]
STRUCTURES = replace(structures_of(ALL_ATOMS), file=np.array([0, 0, 1, 1, 2, 2, 2]), files=("a.xyz", "b.xyz", "c.xyz"))


def kept_by(**options: Any) -> tuple[list[int], list[tuple[str, str, int]]]:
    kept, removals = filtered(FilterSection(**options), STRUCTURES)
    return kept.tolist(), [(removal.reason, removal.file, removal.count) for removal in removals]


CASES = {
    "nothing": ({}, [0, 1, 2, 3, 4, 5, 6], []),
    "elements": (
        {"elements": ("H", "O", "C")},
        [0, 1, 2, 3, 5, 6],
        [("elements besides filter.elements", "c.xyz", 1)],
    ),
    "without elements": (
        {"without_elements": ("C", "Cl")},
        [0, 3, 5, 6],
        [("elements in filter.without_elements", file, 1) for file in ("a.xyz", "b.xyz", "c.xyz")],
    ),
    "with elements": (
        {"with_elements": ("O", "H")},
        [0, 2, 6],
        [
            ("lacks one of filter.with_elements", "a.xyz", 1),
            ("lacks one of filter.with_elements", "b.xyz", 1),
            ("lacks one of filter.with_elements", "c.xyz", 2),
        ],
    ),
    "min atoms": ({"min_atoms": 3}, [0, 1, 2], [("fewer than 3 atoms", "b.xyz", 1), ("fewer than 3 atoms", "c.xyz", 3)]),
    "max atoms": ({"max_atoms": 5}, [0, 1, 3, 4, 5, 6], [("more than 5 atoms", "b.xyz", 1)]),
    "max force": (
        {"max_force": 10.0},
        [0, 2, 3, 4, 5],
        [("force above 10 eV/angstrom", "a.xyz", 1), ("force above 10 eV/angstrom", "c.xyz", 1)],
    ),
    "min energy": ({"min_energy_per_atom": -2.0}, [0, 2, 3, 4, 5, 6], [("energy below -2 eV per atom", "a.xyz", 1)]),
    "max energy": ({"max_energy_per_atom": 0.0}, [0, 1, 2, 4, 5, 6], [("energy above 0 eV per atom", "b.xyz", 1)]),
    "subsets": (
        {"subsets": ("water", "")},
        [0, 4, 5, 6],
        [("not in filter.subsets", "a.xyz", 1), ("not in filter.subsets", "b.xyz", 2)],
    ),
    "without subsets": (
        {"without_subsets": ("hot", "atom")},
        [0, 4, 5, 6],
        [("in filter.without_subsets", "a.xyz", 1), ("in filter.without_subsets", "b.xyz", 2)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_filter_leaves_out_what_it_names(case: str):
    options, kept, removals = CASES[case]
    assert kept_by(**options) == (kept, removals)


def test_a_structure_is_counted_once_under_its_first_reason():
    kept, removals = kept_by(max_force=10.0, min_atoms=2, without_elements=("C",), without_subsets=("hot",))
    assert kept == [0, 4, 5]
    assert removals == [
        ("in filter.without_subsets", "a.xyz", 1),  # also with carbon and a large force
        ("in filter.without_subsets", "b.xyz", 1),
        ("fewer than 2 atoms", "b.xyz", 1),
        ("force above 10 eV/angstrom", "c.xyz", 1),
    ]


NUMBERS = st.floats(-20, 20, allow_nan=False).map(lambda number: round(number, 1))
SYMBOLS = st.sets(st.sampled_from(["H", "C", "O", "Na"]), max_size=3).map(tuple)
NAMES = st.sets(st.sampled_from(["water", "hot", "atom", ""]), max_size=3).map(tuple)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "elements": SYMBOLS,
        "without_elements": SYMBOLS,
        "with_elements": SYMBOLS,
        "min_atoms": st.integers(1, 4),
        "max_atoms": st.integers(4, 9),
        "max_force": NUMBERS.filter(lambda number: number > 0),
        "min_energy_per_atom": NUMBERS.filter(lambda number: number < 0),
        "max_energy_per_atom": NUMBERS.filter(lambda number: number >= 0),
        "subsets": NAMES,
        "without_subsets": NAMES,
    },
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(OPTIONS)
def test_filters_together_keep_what_a_loop_over_the_structures_keeps(options: dict[str, Any]):
    expected = [place for place, atoms in enumerate(ALL_ATOMS) if passes(atoms, options)]
    try:
        kept, removals = filtered(FilterSection(**options), STRUCTURES)
    except UserError:
        assert expected == []
        return
    assert kept.tolist() == expected
    gone = [place for place in range(len(ALL_ATOMS)) if place not in expected]
    by_file = {file: sum(removal.count for removal in removals if removal.file == file) for file in STRUCTURES.files}
    assert by_file == {file: sum(STRUCTURES.file[place] == number for place in gone) for number, file in enumerate(by_file)}
    assert all(removal.count > 0 for removal in removals)
    assert sum(counts_by_reason(removals).values()) == len(gone)


def passes(atoms: Atoms, options: dict[str, Any]) -> bool:
    symbols, energy = set(atoms.symbols), atoms.info["energy"] / len(atoms)
    forces = atoms.arrays.get("forces")
    force = 0.0 if forces is None else np.linalg.norm(forces, axis=1).max()
    return not (
        (options.get("elements") and symbols - set(options["elements"]))
        or symbols & set(options.get("without_elements", ()))
        or set(options.get("with_elements", ())) - symbols
        or not options.get("min_atoms", 0) <= len(atoms) <= options.get("max_atoms", 99)
        or force > options.get("max_force", np.inf)
        or energy < options.get("min_energy_per_atom", -np.inf)
        or energy > options.get("max_energy_per_atom", np.inf)
        or (options.get("subsets") and atoms.info["subset"] not in options["subsets"])
        or atoms.info["subset"] in options.get("without_subsets", ())
    )


def without_labels() -> Structures:
    absent = {name: COLUMNS[name].absent(len(getattr(STRUCTURES, name))) for name in ("energy", "forces")}
    return replace(STRUCTURES, **absent)


@pytest.mark.parametrize("option", ["max_force", "min_energy_per_atom", "max_energy_per_atom"])
def test_what_has_no_label_passes_filters_of_labels(option: str):
    kept, removals = filtered(FilterSection(**{option: 1e-9}), without_labels())
    assert (kept.tolist(), removals) == ([*range(7)], ())


def test_a_force_that_is_known_counts_beside_one_that_is_not():
    atoms = molecule("H3", force=30.0)
    atoms.arrays["forces"][0] = np.nan
    structures = structures_of([atoms, molecule("H2")])
    np.testing.assert_allclose(largest_forces(structures), [30.0, np.nan], rtol=1e-12)
    assert filtered(FilterSection(max_force=29.0), structures)[0].tolist() == [1]


def test_forces_and_elements_are_found_across_pieces(monkeypatch: pytest.MonkeyPatch):
    structures = structures_of([labelled(cluster(4, (1, 6, 8, 92), seed=seed), seed=seed) for seed in range(9)])
    monkeypatch.setattr(Structures.pieces, "__defaults__", (10,))
    assert len(list(structures.pieces())) == 5
    first = structures.offsets[:-1].tolist()
    expected = [np.linalg.norm(structures.forces[begin : begin + 4], axis=1).max() for begin in first]
    np.testing.assert_allclose(largest_forces(structures), expected, rtol=1e-14)
    found = [set(np.flatnonzero(row).tolist()) for row in element_table(structures)]
    assert found == [set(structures.atomic_numbers[begin : begin + 4].tolist()) for begin in first]


def test_every_element_has_a_place_in_the_table():
    structures = structures_of([Atoms("Og"), Atoms("H")])
    assert element_table(structures)[:, [1, 118]].tolist() == [[False, True], [True, False]]
    assert filtered(FilterSection(elements=("Og",)), structures)[0].tolist() == [0]


def test_a_filter_that_leaves_nothing_says_why():
    with pytest.raises(UserError) as raised:
        filtered(FilterSection(min_atoms=3, without_elements=("C", "H")), STRUCTURES)
    assert str(raised.value) == (
        "dataset.filter: leaves none of the 7 structures (fewer than 3 atoms 4, elements in filter.without_elements 3); "
        "loosen it"
    )


@pytest.mark.parametrize("option", ["subsets", "without_subsets"])
def test_a_subset_that_is_nowhere_is_an_error_with_the_nearest_one(option: str):
    with pytest.raises(UserError) as raised:
        filtered(FilterSection(**{option: ("water", "watr")}), STRUCTURES)
    assert str(raised.value) == (
        f"dataset.filter.{option}: 'watr' is no subset of the data (did you mean 'water'?); there are 'water', 'hot', 'atom'"
    )


@pytest.mark.parametrize("option", ["elements", "without_elements", "with_elements"])
@pytest.mark.parametrize("symbol", ["Xx", "X", "c", "6", "", "CO", "H "])
def test_what_is_no_element_is_refused(option: str, symbol: str):
    with pytest.raises(ValidationError, match="must be symbols of elements"):
        FilterSection(**{option: ("H", symbol)})


@pytest.mark.parametrize("symbol", [symbol for symbol, number in atomic_numbers.items() if number])
def test_every_element_may_be_named(symbol: str):
    assert FilterSection(elements=(symbol,)).elements == (symbol,)


@pytest.mark.parametrize("quantity", ["atoms", "energy_per_atom"])
def test_bounds_that_keep_nothing_are_refused(quantity: str):
    FilterSection(**{f"min_{quantity}": 5, f"max_{quantity}": 5})
    with pytest.raises(ValidationError, match=f"min_{quantity}: must not exceed max_{quantity} = 4"):
        FilterSection(**{f"min_{quantity}": 5, f"max_{quantity}": 4})


@pytest.mark.parametrize(("option", "value"), [("max_force", 0.0), ("max_force", -1.0), ("min_atoms", 0), ("max_atoms", 2.5)])
def test_numbers_that_mean_nothing_are_refused(option: str, value: float):
    with pytest.raises(ValidationError):
        FilterSection(**{option: value})


def test_reasons_are_counted_over_all_files():
    removals = [Removal("small", "a", 2), Removal("large", "a", 1), Removal("small", "b", 5)]
    assert counts_by_reason(removals) == {"small": 7, "large": 1}
