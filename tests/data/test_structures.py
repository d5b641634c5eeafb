"""Columns of structures against plain loops over the structures, with labels that are missing everywhere or for some."""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from made_structures import cluster, crystal, labelled, structures_of

from modelforge.data.structures import COLUMNS, LABELS, Structures, concatenate, is_constant, ragged_arange

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
NEEDED = ("num_atoms", "atomic_numbers", "positions", "cell", "periodic")
OPTIONAL = tuple(name for name in COLUMNS if name not in (*NEEDED, "file", "subset"))


def made(num_atoms: list[int], given_columns: frozenset[str], seed: int, *, files: int = 2) -> Structures:
    """Random structures with some columns; every third value of a label is missing."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name in (*NEEDED, *sorted(given_columns)):
        column = COLUMNS[name]
        shape = (sum(num_atoms) if column.per_atom else len(num_atoms), *column.shape)
        values = rng.normal(size=shape) * 1e5 if column.dtype == "float64" else rng.integers(1, 90, size=shape)
        columns[name] = values.astype(column.dtype)
        if name in LABELS:
            columns[name][rng.random(shape[0]) < 1 / 3] = np.nan
    columns["num_atoms"] = np.array(num_atoms, dtype=np.int64)
    columns["file"] = rng.integers(files, size=len(num_atoms))
    columns["subset"] = rng.integers(3, size=len(num_atoms))
    names = [f"{seed % 5}.xyz", "b.xyz", "c.xyz"]
    return Structures(**columns, files=tuple(names[:files]), subset_names=("", "bulk", f"s{seed % 3}"))


RAGGED = st.builds(
    made,
    st.lists(st.integers(1, 5), min_size=1, max_size=9),
    st.frozensets(st.sampled_from(OPTIONAL)),
    st.integers(0, 2**32 - 1),
)


def rows(structures: Structures, name: str) -> list[np.ndarray]:
    """What a column holds of each structure, by a loop."""
    values, found, first = getattr(structures, name), [], 0
    for place, count in enumerate(structures.num_atoms.tolist()):
        found.append(values[first : first + count] if COLUMNS[name].per_atom else values[place : place + 1])
        first += count
    return found


def assert_rows(structures: Structures, name: str, expected: list[np.ndarray]) -> None:
    values = getattr(structures, name)
    wanted = np.concatenate(expected) if expected else values[:0]
    assert values.dtype == COLUMNS[name].dtype
    assert values.shape == wanted.shape
    assert values.tobytes() == wanted.astype(values.dtype).tobytes(), name


def assert_same(first: Structures, second: Structures) -> None:
    assert (first.files, first.subset_names) == (second.files, second.subset_names)
    for name in COLUMNS:
        assert_rows(first, name, [getattr(second, name)])


def constants(structures: Structures) -> set[str]:
    return {name for name in COLUMNS if is_constant(getattr(structures, name))}


@PROPERTY
@given(RAGGED, st.data())
def test_structures_that_are_taken_are_those_of_a_loop(structures: Structures, data: st.DataObject):
    places = st.integers(0, len(structures) - 1)
    chosen = np.array(data.draw(st.lists(places, max_size=12)), dtype=np.int64)
    taken = structures.take(chosen)
    for name in COLUMNS:
        by_structure = rows(structures, name)
        assert_rows(taken, name, [by_structure[place] for place in chosen])
    assert constants(taken) >= constants(structures), "what is missing everywhere takes no memory"
    assert [taken.place(k) for k in range(len(taken))] == [structures.place(k) for k in chosen]
    assert len(structures.atoms_of(chosen)) == taken.offsets[-1]


@PROPERTY
@given(RAGGED, st.data())
def test_a_slice_is_what_it_takes_without_copying(structures: Structures, data: st.DataObject):
    first = data.draw(st.integers(0, len(structures)))
    last = data.draw(st.integers(first, len(structures)))
    part = structures.slice(first, last)
    assert_same(part, structures.take(np.arange(first, last)))
    for name in COLUMNS:
        if len(part):
            assert np.shares_memory(getattr(part, name), getattr(structures, name)), name


@PROPERTY
@given(RAGGED, st.integers(1, 20))
def test_pieces_make_up_the_whole_and_respect_their_bound(structures: Structures, max_atoms: int):
    pieces = list(structures.pieces(max_atoms))
    assert all(len(piece) == 1 or len(piece.atomic_numbers) <= max_atoms for piece in pieces)
    assert all(constants(structures) <= constants(piece) for piece in pieces)
    assert all(np.shares_memory(piece.positions, structures.positions) for piece in pieces)
    assert_same(concatenate(pieces), structures)
    following = pairwise(pieces)
    assert all(len(piece.atomic_numbers) + after.num_atoms[0] > max_atoms for piece, after in following), "none is too small"


@PROPERTY
@given(RAGGED, st.integers(1, 20), st.data())
def test_taken_pieces_make_up_the_choice_in_copies(structures: Structures, max_atoms: int, data: st.DataObject):
    chosen = np.array(data.draw(st.lists(st.integers(0, len(structures) - 1), min_size=1, max_size=12)), dtype=np.int64)
    pieces = list(structures.taken(chosen, max_atoms))
    assert_same(concatenate(pieces), structures.take(chosen))
    assert all(len(piece) > 0 for piece in pieces)
    assert all(len(piece.atomic_numbers) < max_atoms + piece.num_atoms[0] for piece in pieces)
    assert not any(np.shares_memory(piece.positions, structures.positions) for piece in pieces)


@PROPERTY
@given(st.lists(RAGGED, min_size=1, max_size=4))
def test_structures_that_are_joined_keep_their_values_and_their_places(parts: list[Structures]):
    whole = concatenate(parts)
    for name in COLUMNS:
        if name not in ("file", "subset"):
            assert_rows(whole, name, [row for part in parts for row in rows(part, name)])
    assert [whole.place(k) for k in range(len(whole))] == [part.place(k) for part in parts for k in range(len(part))]
    subsets = [part.subset_names[number] for part in parts for number in part.subset]
    assert [whole.subset_names[number] for number in whole.subset] == subsets
    missing = set.intersection(*(constants(part) for part in parts))
    assert missing <= constants(whole), "what is missing in all parts takes no memory"


@PROPERTY
@given(RAGGED, st.sampled_from(LABELS))
def test_a_structure_has_a_label_if_all_its_numbers_are_there(structures: Structures, label: str):
    expected = [bool(np.isfinite(row).all()) for row in rows(structures, label)]
    assert structures.has(label).tolist() == expected
    whole = {"energy": structures.has_energy, "stress": structures.has_stress}
    if label in whole:
        assert whole[label].tolist() == expected
    assert structures.has_force.tolist() == [bool(np.isfinite(vector).all()) for vector in structures.forces]


def test_a_label_with_one_missing_component_is_missing():
    structures = structures_of([labelled(crystal(4, (6,), seed=0), seed=0) for _ in range(2)])
    structures.stress[0, 1, 2] = np.nan
    structures.forces[5, 0] = np.nan
    assert structures.has("stress").tolist() == structures.has_stress.tolist() == [False, True]
    assert structures.has("forces").tolist() == [True, False]
    assert np.flatnonzero(~structures.has_force).tolist() == [5]


def test_elements_are_those_that_occur_ascending():
    structures = structures_of([Atoms("OH"), Atoms("U"), Atoms("HOg".replace("Og", "Lr"))])
    assert structures.elements == (1, 8, 92, 103)
    assert structures.slice(0, 0).elements == ()


def test_columns_that_are_not_given_have_their_defaults_and_no_memory():
    structures = Structures(
        num_atoms=np.array([1, 2]),
        atomic_numbers=np.array([1, 1, 8], dtype=np.uint8),
        positions=np.zeros((3, 3)),
        cell=np.zeros((2, 3, 3)),
        periodic=np.zeros((2, 3), dtype=bool),
    )
    assert structures.group.tolist() == structures.index_in_file.tolist() == [0, 1]
    assert structures.weight.tolist() == [1.0, 1.0]
    assert structures.subset.tolist() == structures.file.tolist() == [0, 0]
    for label in LABELS:
        values = getattr(structures, label)
        assert np.isnan(values).all()
        assert values.shape == (3 if COLUMNS[label].per_atom else 2, *COLUMNS[label].shape)
    assert {*LABELS, "weight", "file", "subset"} <= constants(structures)


def test_a_column_missing_in_one_part_is_missing_there_alone():
    with_energy = structures_of([labelled(cluster(3, (1,), seed=0), seed=0, energy=-97195.123456789)])
    without = replace(with_energy, energy=COLUMNS["energy"].absent(1), files=("other.xyz",))
    whole = concatenate([without, with_energy, without])
    np.testing.assert_array_equal(whole.energy, [np.nan, -97195.123456789, np.nan])
    assert whole.files == ("other.xyz", "made.xyz")


def test_thousands_of_files_are_joined_in_no_time():
    files = tuple(f"system_{number}/set.000" for number in range(1500))
    one = structures_of([Atoms("H")])
    parts = [replace(one, file=np.array([number]), files=files) for number in range(1500)]
    begun = time.perf_counter()
    whole = concatenate(parts)
    assert time.perf_counter() - begun < 3.0, "the time grows with the square of the number of files at most"
    assert [whole.place(number) for number in (0, 777, 1499)] == [f"{files[number]}:0" for number in (0, 777, 1499)]


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 4))))
def test_a_ragged_range_is_ranges_one_after_the_other(pairs: list[tuple[int, int]]):
    starts, counts = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert ragged_arange(starts, counts).tolist() == [start + k for start, count in pairs for k in range(count)]


def test_an_empty_choice_gives_no_structures():
    structures = structures_of([labelled(cluster(3, (1, 8), seed=0), seed=0)])
    none = structures.take(np.array([], dtype=np.int64))
    assert len(none) == len(none.atomic_numbers) == 0
    assert list(none.pieces()) == []
    assert none.has("forces").tolist() == none.has("dipole").tolist() == []


@pytest.mark.parametrize("label", LABELS)
def test_a_label_that_nobody_has_is_answered_without_memory(label: str):
    million = Structures(
        num_atoms=np.broadcast_to(np.int64(100), (10_000_000,)),
        atomic_numbers=np.broadcast_to(np.uint8(1), (1_000_000_000,)),
        positions=COLUMNS["positions"].absent(1_000_000_000),
        cell=COLUMNS["cell"].absent(10_000_000),
        periodic=COLUMNS["periodic"].absent(10_000_000),
        group=np.broadcast_to(np.int64(0), (10_000_000,)),
        index_in_file=np.broadcast_to(np.int64(0), (10_000_000,)),
    )
    assert not million.has(label).any()
