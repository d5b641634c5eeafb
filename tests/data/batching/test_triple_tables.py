"""Triples of a set are gathered into batches from memory and from disk alike. 0.1 s."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import NO_CONSTANTS, cluster, crystal, structures_of

from modelforge.atoms.graph import Reach
from modelforge.data.batching import edges as edges_module
from modelforge.data.batching.batches import StructureTable, structure_table
from modelforge.data.batching.edges import EdgeTable, edges_of
from modelforge.data.batching.triples import triples_of
from modelforge.data.store.columns import INDEX

REACH = Reach(4.0, triples_cutoff=3.0)
STRUCTURES = structures_of(
    [cluster(7, (1, 6), seed=1), cluster(1, (6,), seed=2), crystal(5, (1, 8), seed=3), cluster(12, (1, 6, 8), seed=4)]
)


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EdgeTable:
    monkeypatch.setattr(edges_module, "KEPT_FROM_ATOMS", 0)
    return edges_of(STRUCTURES, cutoff=REACH.cutoff, key="made", cache=tmp_path)


def table_of(edges: EdgeTable | None = None) -> StructureTable:
    return structure_table(STRUCTURES, reach=REACH, self_energies=NO_CONSTANTS, dtype=torch.float32, edges=edges)


@pytest.mark.parametrize("chosen", [[0], [1], [3, 1, 0], [2, 2]])
def test_a_batch_has_the_triples_of_its_structures_one_after_the_other(chosen: list[int]):
    table = table_of()
    together = table.batch(torch.tensor(chosen)).graph
    parts, num_edges = [], 0
    for structure in chosen:
        alone = table.batch(torch.tensor([structure])).graph
        parts.append(alone.triples + num_edges)
        num_edges += alone.num_edges
    assert torch.equal(together.triples, torch.cat(parts, dim=1))


def test_triples_on_disk_are_those_in_memory(on_disk: EdgeTable):
    chosen = torch.tensor([3, 0, 2])
    assert on_disk.columns is not None
    assert torch.equal(table_of(on_disk).batch(chosen).graph.triples, table_of().batch(chosen).graph.triples)


def test_triples_are_found_once_for_each_cutoff(on_disk: EdgeTable):
    said: list[str] = []
    counts = [triples_of(STRUCTURES, on_disk, cutoff=cutoff, say=said.append).num_triples.sum() for cutoff in (3.0, 2.0, 3.0)]
    assert len(said) == 2
    assert counts[0] == counts[2] > counts[1]


def test_damaged_triples_are_found_again(on_disk: EdgeTable):
    before = triples_of(STRUCTURES, on_disk, cutoff=3.0)
    assert before.columns is not None
    expected = before.edges.copy()  # what is mapped cannot be read once the file is short
    (before.columns.folder / "triple_edges.bin").write_bytes(b"")
    said: list[str] = []
    after = triples_of(STRUCTURES, on_disk, cutoff=3.0, say=said.append)
    assert np.array_equal(after.edges, expected)
    assert "damaged" in said[0]
    assert (before.columns.folder / INDEX).exists()


def test_an_atom_with_many_edges_needs_more_than_a_byte():
    """300 neighbours at one place of a made list: their numbers must not wrap around."""
    one = structures_of([cluster(2, (6,), seed=0)])
    table = edges_of(one, cutoff=0.1)
    many = replace(
        table,
        edges_of_atom=np.array([300, 0], dtype=np.int32),
        sender_shift=np.ones(300, dtype=np.int16),
        vectors=np.ones((300, 3), dtype=np.float32),
    )
    triples = triples_of(one, many, cutoff=3.0)
    assert triples.num_triples.tolist() == [300 * 299 // 2]
    assert triples.edges.max() == 299


def test_triples_are_work_too() -> None:
    """Of two structures with as many edges the one with more triples takes longer."""
    chain = Atoms("C12", positions=[(1.4 * place, 0, 0) for place in range(12)])  # with neighbours of neighbours 42 edges
    clique = Atoms("C7", positions=2.0 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)]))
    table = structure_table(
        structures_of([chain, clique]), reach=Reach(4.1, triples_cutoff=4.1), self_energies=NO_CONSTANTS, dtype=torch.float32
    )
    assert table.num_edges.tolist() == [42, 42]
    assert table.costs(torch.arange(2)).tolist() == [42 + 36 + (2 + 2 * 3 + 8 * 6) // 5, 42 + 21 + 7 * 15 // 5]
