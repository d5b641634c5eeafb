"""Batches gathered from flat columns against graphs that are built structure by structure."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from made_structures import cluster, crystal, labelled, structures_of

from modelforge.atoms.graph import Reach
from modelforge.data.batching.batches import StructureTable, structure_table
from modelforge.data.structures import sum_of_constants

CUTOFF = 3.2
ALL_ATOMS = [
    labelled(cluster(6, (1, 6, 8), seed=0), seed=0, energy=-2000.0),
    labelled(Atoms("O"), seed=1, energy=-2042.0),
    labelled(crystal(4, (1, 6), seed=2), seed=2, energy=-4000.0),
    Atoms("H"),
    labelled(cluster(3, (8,), seed=4), seed=4, energy=-6000.0),
    Atoms("CH", positions=[[0, 0, 0], [0, 0, 9.0]], cell=[4, 4, 0], pbc=(True, True, False)),
]
CONSTANTS = np.zeros(119)
CONSTANTS[[1, 6, 8]] = (-13.6, -1029.4, -2042.0)


def table_of(dtype: torch.dtype = torch.float64) -> StructureTable:
    return structure_table(structures_of(ALL_ATOMS), reach=Reach(CUTOFF), self_energies=CONSTANTS, dtype=dtype)


CHOICES = [[0], [3], [0, 1, 2, 3, 4, 5], [4, 2, 0], [5, 3, 1], [2, 2, 0], [3, 1]]


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_a_batch_is_the_graph_that_ase_builds_structure_by_structure(chosen: list[int]):
    batch = table_of().batch(torch.tensor(chosen))
    graph, atoms = batch.graph, [ALL_ATOMS[place] for place in chosen]
    first_atoms = np.cumsum([0, *(len(one) for one in atoms)])
    receivers, senders, vectors = [], [], []
    for one, first in zip(atoms, first_atoms, strict=False):
        i, j, between = neighbor_list("ijD", one, CUTOFF)
        receivers, senders, vectors = [*receivers, i + first], [*senders, j + first], [*vectors, between]
    expected = np.column_stack([np.concatenate(receivers), np.concatenate(senders), np.concatenate(vectors)])
    got = np.column_stack([graph.receivers, graph.senders, graph.edge_vectors])
    np.testing.assert_allclose(in_order(got), in_order(expected), rtol=0, atol=1e-10)
    assert (np.diff(graph.receivers) >= 0).all()
    np.testing.assert_array_equal(graph.atomic_numbers, np.concatenate([one.numbers for one in atoms]))
    np.testing.assert_array_equal(graph.first_atom, first_atoms[:-1])
    np.testing.assert_array_equal(graph.structure_index, np.repeat(np.arange(len(atoms)), np.diff(first_atoms)))
    assert (graph.num_structures, graph.num_atoms, graph.num_edges) == (len(atoms), first_atoms[-1], len(expected))
    assert batch.indices.tolist() == chosen


def in_order(edges: np.ndarray) -> np.ndarray:
    rounded = np.round(edges, 6)
    return edges[np.lexsort(rounded.T[::-1])]


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_pointers_of_a_batch_point_where_they_say(chosen: list[int]):
    graph = table_of().batch(torch.tensor(chosen)).graph
    torch.testing.assert_close(graph.receivers[graph.reverse_edge], graph.senders)
    torch.testing.assert_close(graph.edge_vectors[graph.reverse_edge], -graph.edge_vectors)
    counts = torch.bincount(graph.receivers, minlength=graph.num_atoms)
    torch.testing.assert_close(graph.first_edge, counts.cumsum(0) - counts)


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_labels_of_a_batch_are_those_of_its_structures(chosen: list[int]):
    labels = table_of().batch(torch.tensor(chosen)).labels
    for place, index in enumerate(chosen):
        atoms = ALL_ATOMS[index]
        expected = atoms.info.get("energy", np.nan) - CONSTANTS[atoms.numbers].sum()
        np.testing.assert_allclose(labels.energy[place], expected, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(labels.stress[place], atoms.info.get("stress", np.full((3, 3), np.nan)))
    forces = [ALL_ATOMS[index].arrays.get("forces", np.full((len(ALL_ATOMS[index]), 3), np.nan)) for index in chosen]
    np.testing.assert_array_equal(labels.forces, np.concatenate(forces))


def test_only_full_periodicity_has_a_volume():
    volume = table_of().batch(torch.arange(6)).graph.volume
    assert volume.isfinite().tolist() == [False, False, True, False, False, False]
    assert float(volume[2]) == pytest.approx(ALL_ATOMS[2].get_volume(), rel=1e-12)


def test_the_sum_of_constants_is_that_of_a_loop():
    expected = [CONSTANTS[atoms.numbers].sum() for atoms in ALL_ATOMS]
    np.testing.assert_allclose(sum_of_constants(structures_of(ALL_ATOMS), CONSTANTS), expected, rtol=1e-14)


def test_a_table_has_the_precision_of_the_training():
    batch = table_of(torch.float32).batch(torch.tensor([2, 0]))
    floats = (batch.graph.edge_vectors, batch.graph.volume, *vars(batch.labels).values(), batch.label_counts)
    assert {tensor.dtype for tensor in floats} == {torch.float32}


def test_a_batch_on_its_device_is_not_copied():
    batch = table_of().batch(torch.tensor([0, 2]))
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    parts = (moved.graph.edge_vectors, moved.labels.forces, moved.subset, moved.label_counts)
    assert {tensor.device.type for tensor in parts} == {"meta"}
