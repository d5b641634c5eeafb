"""The content hash: one for the same content in any pieces, another for any change that training would see."""

import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from made_structures import cluster, crystal, labelled, structures_of

from modelforge.data.store.content_hash import HASHED, ContentHash, content_hash
from modelforge.data.structures import COLUMNS, LABELS, Structures, concatenate

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
ALL_ATOMS = [
    Atoms("H"),
    cluster(3, (8,), seed=4),
    labelled(cluster(6, (1, 6, 8), seed=0), seed=0, energy=-97195.123456789),
    Atoms("CH", positions=[[0, 0, 0], [0, 0, 9.0]], cell=[4, 4, 0], pbc=(True, True, False)),
    labelled(crystal(4, (1, 6), seed=2), seed=2, energy=-1e6),
    labelled(Atoms("O"), seed=1),
]
WHOLE = structures_of(ALL_ATOMS)
COMPLETE = replace(
    WHOLE,
    **{
        name: np.random.default_rng(place).normal(size=getattr(WHOLE, name).shape)
        for place, name in enumerate((*LABELS, "weight"))
    },
)


def hash_of(pieces: list[Structures]) -> str:
    found = ContentHash()
    for piece in pieces:
        found.add(piece)
    return found.hexdigest()


@PROPERTY
@given(st.permutations(range(len(ALL_ATOMS))), st.lists(st.integers(0, len(ALL_ATOMS))))
def test_the_hash_does_not_depend_on_the_pieces(order: list[int], cuts: list[int]):
    whole = structures_of([ALL_ATOMS[place] for place in order])
    bounds = [0, *sorted(cuts), len(whole)]
    pieces = [whole.slice(first, last) for first, last in pairwise(bounds)]
    assert hash_of(pieces) == content_hash(whole)
    assert hash_of([replace(piece, **without_missing(piece)) for piece in pieces]) == content_hash(whole)


def without_missing(piece: Structures) -> dict[str, np.ndarray]:
    """The labels that a piece lacks, as columns that were never there."""
    columns = {name: getattr(piece, name) for name in LABELS}
    return {name: COLUMNS[name].absent(len(values)) for name, values in columns.items() if np.isnan(values).all()}


def test_a_label_that_nobody_has_counts_as_one_that_was_never_asked_for():
    asked = replace(WHOLE, dipole=np.full((len(WHOLE), 3), np.nan), weight=np.ones(len(WHOLE)))
    assert content_hash(asked) == content_hash(WHOLE)


@pytest.mark.parametrize("name", HASHED)
def test_any_number_that_training_sees_is_part_of_the_hash(name: str):
    values = getattr(COMPLETE, name).copy()
    last = values.reshape(-1)[-1:]
    last[:] = ~last if values.dtype == bool else np.nextafter(last, np.inf) if values.dtype == float else last + 1
    if name == "num_atoms":  # so many atoms more would not be there
        values[0], values[-1] = values[0] + 1, values[-1] - 2
    assert content_hash(replace(COMPLETE, **{name: values})) != content_hash(COMPLETE)


@pytest.mark.parametrize("name", [*LABELS, "weight"])
def test_a_label_that_is_removed_changes_the_hash(name: str):
    missing = COLUMNS[name].absent(len(getattr(COMPLETE, name)))
    assert content_hash(replace(COMPLETE, **{name: missing})) != content_hash(COMPLETE)


def test_equal_numbers_of_another_label_are_another_content():
    charge = np.arange(len(WHOLE)) + 1.0
    assert content_hash(replace(WHOLE, total_charge=charge)) != content_hash(replace(WHOLE, spin_multiplicity=charge))


def test_the_order_of_structures_and_the_owner_of_an_atom_are_part_of_the_hash():
    assert content_hash(WHOLE.take(np.array([1, 0, 2, 3, 4, 5]))) != content_hash(WHOLE)
    two, three = Atoms("H2", [[0, 0, 0], [0, 0, 1]]), Atoms("H3", [[0, 0, 0], [0, 0, 1], [0, 0, 2]])
    cut_otherwise = [three[:2], three[2:] + two], [three[:1], three[1:] + two]
    assert len({content_hash(structures_of(some)) for some in cut_otherwise}) == 2


def test_names_of_files_are_no_content():
    renamed = replace(WHOLE, files=("moved/elsewhere.xyz",), index_in_file=WHOLE.index_in_file + 7)
    assert content_hash(renamed) == content_hash(WHOLE)
    assert content_hash(concatenate([renamed.slice(0, 3), WHOLE.slice(3, 6)])) == content_hash(WHOLE)


def test_a_label_that_comes_after_millions_without_it_costs_no_memory():
    num = 4_000_000
    late = structures_of([labelled(Atoms("H"), seed=0)])
    early = Structures(
        num_atoms=np.broadcast_to(np.int64(num), (1,)),
        atomic_numbers=np.ones(num, dtype=np.uint8),
        positions=np.broadcast_to(0.0, (num, 3)),
        cell=COLUMNS["cell"].absent(1),
        periodic=COLUMNS["periodic"].absent(1),
    )
    found = ContentHash()
    found.add(replace(early, positions=COLUMNS["positions"].absent(num)))
    tracemalloc.start()
    try:
        found.add(late)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000, "forces and positions of the atoms before would be 96 MB each"


def test_a_missing_label_is_the_same_whatever_sign_its_nan_has():
    assert content_hash(replace(WHOLE, energy=np.where(WHOLE.has_energy, WHOLE.energy, -np.nan))) == content_hash(WHOLE)
    assert content_hash(replace(WHOLE, stress=np.where(np.isnan(WHOLE.stress), -np.nan, WHOLE.stress))) == content_hash(WHOLE)


def test_the_hash_is_32_digits():
    assert len(bytes.fromhex(content_hash(WHOLE))) == 16
