"""Structures that occur twice, exactly and nearly; frames of molecular dynamics are not called duplicates."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from modelforge.data.audit import duplicates
from modelforge.data.audit.duplicates import SAME_SHAPE, Selection, duplicates_across, duplicates_within
from modelforge.data.audit.fingerprints import compositions, element_sequences, exact_fingerprints
from modelforge.data.audit.sets import audit_sets
from modelforge.data.structures import Structures, concatenate


def whole(structures: Structures) -> Selection:
    return Selection(structures, np.arange(len(structures)))


def disguised(structures: Structures, generator: np.random.Generator, *, noise: float = 0.0) -> Structures:
    """Each molecule turned, mirrored, shifted and renumbered on its own, its atoms moved by some noise."""
    positions, elements = structures.positions.copy(), structures.atomic_numbers.copy()
    for begin, end in zip(structures.offsets[:-1], structures.offsets[1:], strict=True):
        order = generator.permutation(end - begin) + begin
        turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]  # a rotation or a reflection
        moved = structures.positions[order] @ turn + generator.normal(size=3) * 10
        positions[begin:end] = moved + generator.normal(size=moved.shape) * noise
        elements[begin:end] = structures.atomic_numbers[order]
    return replace(structures, positions=positions, atomic_numbers=elements)


def test_copies_are_found_exactly(ethanolamine: Structures):
    others = concatenate([ethanolamine.take(np.array([5, 470])), disguised(ethanolamine, np.random.default_rng(0)).slice(0, 3)])
    found = duplicates_across(whole(ethanolamine), whole(others))
    assert found.exact.tolist() == [0, 1]
    assert found.near.tolist() == [0, 1, 2, 3, 4]
    assert found.partner.tolist() == [5, 470, 0, 1, 2]


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_turned_mirrored_and_renumbered_molecules_are_near_duplicates(ethanolamine: Structures, noise: float):
    others = disguised(ethanolamine, np.random.default_rng(0), noise=noise)
    found = duplicates_across(whole(ethanolamine), whole(others))
    assert len(found.exact) == 0
    assert found.near.tolist() == found.partner.tolist() == list(range(len(ethanolamine)))


def test_frames_of_molecular_dynamics_are_no_duplicates(acac: Structures, read_shared):
    found = duplicates_across(whole(acac), whole(read_shared("acac/test_MD_300K.xyz")))
    assert len(found.exact) == len(found.near) == 0
    assert found.num_searched == 650


def test_near_duplicates_are_those_of_a_brute_force(ethanolamine: Structures):
    """Distances atom by atom, for copies of one frame whose atoms moved by more and more."""
    generator = np.random.default_rng(0)
    frame = ethanolamine.slice(0, 1)
    noises = np.linspace(0.0, 0.05, 40)
    moved = [replace(frame, positions=frame.positions + generator.normal(size=frame.positions.shape) * s) for s in noises]

    def distances(structures: Structures) -> np.ndarray:
        return np.linalg.norm(structures.positions[:, None] - structures.positions, axis=2)

    differences = [np.sqrt(np.mean((distances(other) - distances(frame)) ** 2)) for other in moved]
    found = duplicates_across(whole(frame), whole(concatenate(moved)))
    certain = np.flatnonzero(np.array(differences) < SAME_SHAPE)  # ordering the distances only brings them nearer
    assert np.isin(certain, found.near).all()
    assert max(np.array(differences)[found.near]) < 1.2 * SAME_SHAPE


def test_cells_in_another_setting_are_near_duplicates(build):
    primitive = [bulk("Cu", a=3.6), bulk("Cu", a=3.65), bulk("Cu", a=3.75)]
    skewed = bulk("Cu", a=3.6)
    skewed.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]]) @ skewed.cell.array)
    found = duplicates_across(whole(build(primitive)), whole(build([skewed])))
    assert found.partner.tolist() == [0]


def test_close_packings_are_told_apart(build):
    cubic = bulk("Cu", a=3.6, orthorhombic=True)
    hexagonal = bulk("Cu", "hcp", a=3.6 / np.sqrt(2), covera=np.sqrt(8 / 3))
    assert len(cubic) == len(hexagonal)
    assert len(duplicates_across(whole(build([cubic])), whole(build([hexagonal]))).near) == 0


def test_a_molecule_and_the_same_in_a_box_are_not_alike(build):
    molecule = Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]])
    boxed = Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]], cell=[9.0] * 3, pbc=True)
    found = duplicates_across(whole(build([molecule])), whole(build([boxed])))
    assert len(found.exact) == len(found.near) == 0


def test_repeated_structures_of_one_set_are_counted_once_each(ethanolamine: Structures):
    twice = concatenate([ethanolamine, ethanolamine.take(np.array([3, 3, 9]))])
    found = duplicates_within(whole(twice))
    assert found.exact.tolist() == [480, 481, 482]
    assert found.near.tolist() == [480, 481, 482]
    assert set(found.partner.tolist()) <= {3, 9, 480}


def test_selections_are_searched_in_place(ethanolamine: Structures):
    twice = concatenate([ethanolamine, ethanolamine])
    found = duplicates_across(Selection(twice, np.arange(100)), Selection(twice, np.array([70, 490, 700])))
    assert found.exact.tolist() == [70, 490]
    assert found.partner.tolist() == [70, 10]


def test_very_many_conformations_are_searched_in_a_sample(ethanolamine: Structures, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 1000)
    monkeypatch.setattr(duplicates, "MIN_WANTED", 10)
    found = duplicates_across(whole(ethanolamine), whole(ethanolamine))
    assert found.num_searched == 20  # ten of each of the two molecules
    assert len(found.near) == 20
    assert len(found.exact) == len(ethanolamine)


def test_fingerprints_tell_apart_what_differs_in_one_thing(build):
    base = Atoms("CO2", positions=[[0, 0, 0], [0, 0, 1.2], [0, 0, -1.2]])
    shifted, other_order, other_element = base.copy(), base.copy()[[1, 0, 2]], base.copy()
    shifted.positions[0, 0] += 1e-4
    other_element.symbols[0] = "N"
    boxed = base.copy()
    boxed.set_cell([9.0] * 3)
    boxed.pbc = True
    larger_box = boxed.copy()
    larger_box.set_cell([9.1] * 3)
    structures = build([base, shifted, other_order, other_element, boxed, larger_box, base.copy()])
    prints = exact_fingerprints(structures)
    assert len(np.unique(prints)) == 6
    assert prints[0] == prints[-1]
    assert len(np.unique(element_sequences(structures))) == 4
    assert len(np.unique(compositions(structures))) == 3


def test_no_two_of_many_structures_share_a_fingerprint():
    num = 200_000
    structures = Structures(
        num_atoms=np.full(num, 2),
        atomic_numbers=np.ones(2 * num, dtype=np.uint8),
        positions=np.stack([np.arange(2 * num) % 1000, np.arange(2 * num) // 1000, np.zeros(2 * num)], axis=1) * 1e-3,
        cell=np.zeros((num, 3, 3)),
        periodic=np.zeros((num, 3), dtype=bool),
    )
    assert len(np.unique(exact_fingerprints(structures))) == num


def test_sets_that_share_structures_are_named(ethanolamine: Structures):
    others = {"validation": Selection(ethanolamine, np.arange(90, 120)), "fresh": Selection(ethanolamine, np.arange(200, 260))}
    found = audit_sets(Selection(ethanolamine, np.arange(100)), others)
    assert found.to_json() == {
        "train": {"num_structures": 100, "num_exact": 0, "num_near": 0, "num_searched": 100},
        "validation": {"num_structures": 30, "num_exact": 10, "num_near": 10, "num_searched": 30},
        "fresh": {"num_structures": 60, "num_exact": 0, "num_near": 0, "num_searched": found.overlaps["fresh"].num_searched},
    }
    (finding,) = found.findings
    assert (finding.severity, finding.key) == ("note", "dataset.split")
    assert "10 of the 30 structures of the set 'validation' are also in the training set" in finding.message


def test_near_duplicates_across_sets_are_named_with_both_places(ethanolamine: Structures):
    others = disguised(ethanolamine.slice(7, 8), np.random.default_rng(0))
    (finding,) = audit_sets(whole(ethanolamine), {"mine": whole(others)}).findings
    assert finding.key == "dataset.test_paths.mine"
    assert f"{others.place(0)} and {ethanolamine.place(7)}" in finding.message


def test_repeated_training_structures_are_named(ethanolamine: Structures):
    (finding,) = audit_sets(whole(concatenate([ethanolamine, ethanolamine.slice(0, 2)])), {}).findings
    assert "2 of the 482 structures of the training set occur in it before" in finding.message
