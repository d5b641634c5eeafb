"""Shortest distances: equal to a brute force over all pairs and images; identical atoms stop, near ones are told."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii

from modelforge.data.audit.audit import audit
from modelforge.data.audit.distances import distance_findings, shortest_distances
from modelforge.data.structures import Structures

SINGLE = 1e-5  # angstrom; distances over all structures are in float32


def brute_force(atoms: Atoms, num_images: int = 3) -> float:
    """The shortest distance over all pairs and images."""
    shifts = [np.zeros(3)]
    for axis in np.flatnonzero(atoms.pbc):
        shifts = [shift + number * np.eye(3)[axis] for shift in shifts for number in range(-num_images, num_images + 1)]
    shortest = np.inf
    for shift in np.array(shifts) @ atoms.cell.array:
        distances = np.linalg.norm(atoms.positions[:, None] - atoms.positions - shift, axis=2)
        if not shift.any():
            np.fill_diagonal(distances, np.inf)
        shortest = min(shortest, distances.min())
    return float(shortest)


def random_structures() -> list[Atoms]:
    generator = np.random.default_rng(0)
    frames = []
    for num_atoms in (2, 3, 4, 7, 20, 21):
        for pbc in (False, True, (True, True, False)):
            cell = 4.0 * np.eye(3) + generator.uniform(-1, 1, size=(3, 3)) if np.any(pbc) else None
            frames.append(Atoms(f"C{num_atoms}", positions=generator.normal(size=(num_atoms, 3)) * 3, cell=cell, pbc=pbc))
    frames.append(Atoms("Cu", cell=[[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]], pbc=True))  # only images of itself
    return frames


def test_shortest_distances_are_those_of_a_brute_force(build):
    frames = random_structures()
    found = shortest_distances(build(frames))
    assert found.distance == pytest.approx([brute_force(atoms) for atoms in frames], abs=SINGLE)
    radius = covalent_radii[6]
    assert found.relative[:-1] == pytest.approx(found.distance[:-1] / (2 * radius), rel=1e-5)


def test_far_away_molecules_lose_no_precision(build):
    far = Atoms("H2", positions=np.array([[0, 0, 0], [0, 0, 0.74]]) + 1e5)
    assert shortest_distances(build([far])).distance[0] == pytest.approx(0.74, abs=SINGLE)


def test_the_closest_pair_is_named_with_its_structure_and_atoms(build):
    frames = [Atoms("C4", positions=np.eye(4)[:, :3] * 3 * (1 + 0.1 * index)) for index in range(10)]
    frames[6].positions[3] = frames[6].positions[1] + [0, 0, 0.9]
    closest = shortest_distances(build(frames)).closest[0]
    assert (closest.structure, closest.first, closest.second) == (6, 1, 3)
    assert closest.distance == pytest.approx(0.9, abs=1e-12)


def test_lone_atoms_have_no_distance(build):
    found = shortest_distances(build([Atoms("H", positions=[[0, 0, 0]])]))
    assert np.isinf(found.distance).all()
    assert found.closest == ()


def test_large_molecules_go_through_a_cell_list(build):
    positions = 2.0 * np.stack(np.meshgrid(*[np.arange(11)] * 3), axis=-1).reshape(-1, 3)
    positions[700] += 0.5
    atoms = Atoms(f"C{len(positions)}", positions=positions)
    found = shortest_distances(build([atoms]))
    assert found.distance[0] == pytest.approx(brute_force(atoms), abs=SINGLE)


@pytest.mark.parametrize("pbc", [False, True])
def test_identical_atoms_stop_the_run_and_are_named(build, pbc: bool):
    frames = [Atoms("C4", positions=np.eye(4)[:, :3] * 2, cell=[8.0] * 3, pbc=pbc) for _ in range(3)]
    frames[1].positions[3] = frames[1].positions[0] + [0.001, 0, 0]
    (finding,) = [finding for finding in audit(build(frames)).findings if finding.severity == "stop"]
    assert finding.key == "dataset.path"
    assert finding.message == (
        "made.xyz:1: atoms 0 and 3 are in the same place (0.0010 angstrom apart); remove one of them, or the structure"
    )


def test_an_atom_on_an_image_of_another_is_identical(build):
    frame = Atoms("C2", positions=[[0, 0, 0], [8.0, 0, 0.001]], cell=[8.0] * 3, pbc=True)
    findings = distance_findings(build([frame]), shortest_distances(build([frame])), length_scale=1.0)
    assert [finding.severity for finding in findings] == ["stop"]


def test_heavy_atoms_far_too_close_are_told_although_bonds_to_hydrogen_are_shorter(build):
    frames = [Atoms("H2Pb2", positions=[[0, 0, 0], [0, 0, 0.74], [8, 0, 0], [8, 0, 2.9]]) for _ in range(9)]
    frames[4].positions[3] = [8, 0, 0.9]
    structures = build(frames)
    (finding,) = distance_findings(structures, shortest_distances(structures), length_scale=1.0)
    assert finding.severity == "note"
    assert finding.message.startswith("made.xyz:4: atoms 2 (Pb) and 3 (Pb) are 0.900 angstrom apart")


def test_chosen_structures_are_all_that_counts(build):
    frames = [Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7 + 0.1 * index]]) for index in range(5)]
    found = shortest_distances(build(frames), np.array([3, 4]))
    assert found.structures.tolist() == [3, 4]
    assert found.closest[0].structure == 3


def test_a_hundred_thousand_molecules_take_seconds():
    """A million of them may take 25 s; the limit here leaves room for a loaded machine."""
    num, num_atoms = 100_000, 20
    positions = np.random.default_rng(0).normal(size=(num * num_atoms, 3)) * 4
    structures = Structures(
        num_atoms=np.full(num, num_atoms),
        atomic_numbers=np.tile(np.array([6, 1], dtype=np.uint8), num * num_atoms // 2),
        positions=positions,
        cell=np.zeros((num, 3, 3)),
        periodic=np.zeros((num, 3), dtype=bool),
    )
    begin = time.process_time()
    found = shortest_distances(structures)
    assert time.process_time() - begin < 2.5
    few = structures.take(np.arange(50))
    for index in range(50):
        atoms = few.positions[index * num_atoms : (index + 1) * num_atoms]
        assert found.distance[index] == pytest.approx(brute_force(Atoms("C20", positions=atoms)), abs=SINGLE)
